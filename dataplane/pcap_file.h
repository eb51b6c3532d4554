/* Reading capture files: classic pcap (either byte order, micro- or nanoseconds) and pcapng, from
 * memory.
 *
 * The file is a stranger's: every length is checked against what is there. Any one thread per
 * reader. Never allocates, never writes to the file's bytes; Ethernet frames only, those of other
 * interfaces are stepped over.
 */
#ifndef VSWITCH_PCAP_FILE_H
#define VSWITCH_PCAP_FILE_H

#include "base.h"

/* Of one pcapng section; the frames of further ones are stepped over. */
#define PCAP_INTERFACES_MAX 16

struct pcap_interface {
	bool ethernet;
	u8 resolution; /* if_tsresol: 10^-n seconds, with bit 7: 2^-n */
	u32 snaplen;
};

struct pcap_reader {
	const u8 *bytes;
	u64 size;
	u64 at;
	bool swapped; /* the file's (the section's) byte order is not ours */
	bool ng;
	u32 n_interfaces;
	struct pcap_interface interfaces[PCAP_INTERFACES_MAX];
	u64 last_ns;
};

struct pcap_frame {
	const u8 *data;
	u32 length; /* bytes that are there */
	u32 wire_length; /* bytes that it had */
	u64 time_ns; /* since 1970 */
};

/* Looks at the file's head. 0, -EBADMSG: not a capture file, -EPROTONOSUPPORT: not of Ethernet
 * frames (classic pcap). */
int pcap_reader_open(struct pcap_reader *reader, const void *bytes, u64 size);

/* The next frame. 1, 0: the end (a last record that is cut short, as left by a writer that was
 * stopped, is the end too), -EBADMSG: the file is damaged here, and stays so. */
int pcap_reader_next(struct pcap_reader *reader, struct pcap_frame *frame);

/* Writing pcapng. Each writes to `to` and returns the bytes. */
#define PCAP_HEAD_SIZE 60 /* section header and one interface: Ethernet, nanoseconds */
u32 pcap_write_head(u8 *to);

/* The block around a frame of `length` bytes: what stands before it (PCAP_BLOCK_HEAD bytes), and
 * the bytes behind it, padding included. */
#define PCAP_BLOCK_HEAD 28
#define PCAP_BLOCK_TAIL_MAX 7
void pcap_write_block_head(u8 *to, u32 length, u64 time_ns);
u32 pcap_write_block_tail(u8 *to, u32 length);
ALWAYS_INLINE u32 pcap_block_size(u32 length)
{
	return PCAP_BLOCK_HEAD + ((length + 3) & ~3u) + 4;
}

#endif
