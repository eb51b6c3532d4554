/* Capture files: see pcap_file.h. Formats: pcap and pcapng as in the IETF drafts
 * draft-ietf-opsawg-pcap and -pcapng. */
#include "pcap_file.h"

#define LINK_ETHERNET 1
#define LENGTH_MAX (1u << 20) /* of a frame; more is damage */

#define PCAP_HEADER 24
#define PCAP_RECORD 16
#define MAGIC_MICROSECONDS 0xa1b2c3d4
#define MAGIC_NANOSECONDS 0xa1b23c4d
#define RESOLUTION_MICROSECONDS 6
#define RESOLUTION_NANOSECONDS 9

#define NG_BLOCK 12 /* type, length, length again at the end */
#define NG_SECTION 0x0a0d0d0a
#define NG_INTERFACE 1
#define NG_SIMPLE 3
#define NG_ENHANCED 6
#define NG_MAGIC 0x1a2b3c4d
#define NG_OPTION_RESOLUTION 9

static u32 read32(const struct pcap_reader *reader, const u8 *p)
{
	u32 value = LOAD_UNALIGNED(u32, p);

	return reader->swapped ? __builtin_bswap32(value) : value;
}

static u16 read16(const struct pcap_reader *reader, const u8 *p)
{
	u16 value = LOAD_UNALIGNED(u16, p);

	return reader->swapped ? __builtin_bswap16(value) : value;
}

static int open_classic(struct pcap_reader *reader)
{
	u32 magic = read32(reader, reader->bytes);

	if (magic != MAGIC_MICROSECONDS && magic != MAGIC_NANOSECONDS) {
		reader->swapped = true;
		magic = read32(reader, reader->bytes);
	}
	if (magic != MAGIC_MICROSECONDS && magic != MAGIC_NANOSECONDS)
		return -EBADMSG;
	/* The upper bits tell of a frame check sequence, which Ethernet captures do not have. */
	if ((read32(reader, reader->bytes + 20) & 0xffff) != LINK_ETHERNET)
		return -EPROTONOSUPPORT;
	reader->n_interfaces = 1;
	reader->interfaces[0] = (struct pcap_interface){
		.ethernet = true,
		.resolution = magic == MAGIC_NANOSECONDS ? RESOLUTION_NANOSECONDS :
							   RESOLUTION_MICROSECONDS,
	};
	reader->at = PCAP_HEADER;
	return 0;
}

int pcap_reader_open(struct pcap_reader *reader, const void *bytes, u64 size)
{
	memset(reader, 0, sizeof(*reader));
	reader->bytes = bytes;
	reader->size = size;
	if (size < PCAP_HEADER)
		return -EBADMSG;
	if (read32(reader, reader->bytes) == NG_SECTION) { /* the same in either byte order */
		reader->ng = true;
		return 0;
	}
	return open_classic(reader);
}

static int next_classic(struct pcap_reader *reader, struct pcap_frame *frame)
{
	const u8 *record = reader->bytes + reader->at;
	u64 left = reader->size - reader->at, fraction;
	u32 length;

	if (left < PCAP_RECORD)
		return 0;
	length = read32(reader, record + 8);
	if (length > LENGTH_MAX)
		return -EBADMSG;
	if (length > left - PCAP_RECORD)
		return 0;
	fraction = read32(reader, record + 4);
	if (reader->interfaces[0].resolution == RESOLUTION_MICROSECONDS)
		fraction *= 1000;
	*frame = (struct pcap_frame){.data = record + PCAP_RECORD,
				     .length = length,
				     .wire_length = read32(reader, record + 12),
				     .time_ns =
					     (u64)read32(reader, record) * 1000000000u + fraction};
	reader->at += PCAP_RECORD + length;
	return 1;
}

/* Ticks of the interface in nanoseconds; a time beyond what 64 bits hold wraps, and means
 * nothing anyway. */
static u64 ticks_to_ns(u64 ticks, u8 resolution)
{
	u64 divisor = 1;

	if (resolution & 0x80) {
		u32 shift = resolution & 0x7f;

		if (shift > 63)
			return 0;
		return (ticks >> shift) * 1000000000u +
		       (u64)(((unsigned __int128)(ticks & ((1ull << shift) - 1)) * 1000000000u) >>
			     shift);
	}
	if (resolution <= 9) {
		for (u32 i = resolution; i < 9; i++)
			divisor *= 10;
		return ticks * divisor;
	}
	for (u32 i = 9; i < resolution && divisor < UINT64_MAX / 10; i++)
		divisor *= 10;
	return ticks / divisor;
}

static int read_section(struct pcap_reader *reader, const u8 *body, u32 length)
{
	u32 magic = LOAD_UNALIGNED(u32, body);

	reader->swapped = magic != NG_MAGIC;
	reader->n_interfaces = 0;
	return length >= 16 && read32(reader, body) == NG_MAGIC ? 0 : -EBADMSG;
}

static int read_interface(struct pcap_reader *reader, const u8 *body, u32 length)
{
	struct pcap_interface *interface;
	u32 at = 8;

	if (length < 8)
		return -EBADMSG;
	if (reader->n_interfaces == PCAP_INTERFACES_MAX)
		return 0; /* its frames will have a number beyond those known */
	interface = &reader->interfaces[reader->n_interfaces];
	*interface = (struct pcap_interface){.ethernet = read16(reader, body) == LINK_ETHERNET,
					     .resolution = RESOLUTION_MICROSECONDS,
					     .snaplen = read32(reader, body + 4)};
	while (length - at >= 4) {
		u32 option = read16(reader, body + at), size = read16(reader, body + at + 2);

		at += 4;
		if (!option)
			break;
		if (size > length - at)
			return -EBADMSG;
		if (option == NG_OPTION_RESOLUTION && size)
			interface->resolution = body[at];
		size = (size + 3) & ~3u;
		at = size > length - at ? length : at + size;
	}
	/* Only now: what is damaged stays so, however often it is read. */
	reader->n_interfaces++;
	return 0;
}

static int read_enhanced(struct pcap_reader *reader, const u8 *body, u32 length,
			 struct pcap_frame *frame)
{
	u32 number, captured;
	u64 ticks;

	if (length < 20)
		return -EBADMSG;
	number = read32(reader, body);
	captured = read32(reader, body + 12);
	if (captured > length - 20 || captured > LENGTH_MAX)
		return -EBADMSG;
	if (number >= reader->n_interfaces || !reader->interfaces[number].ethernet)
		return 0;
	ticks = (u64)read32(reader, body + 4) << 32 | read32(reader, body + 8);
	*frame = (struct pcap_frame){.data = body + 20,
				     .length = captured,
				     .wire_length = read32(reader, body + 16),
				     .time_ns = ticks_to_ns(ticks,
							    reader->interfaces[number].resolution)};
	return 1;
}

/* A frame without a time: that of the one before it. */
static int read_simple(struct pcap_reader *reader, const u8 *body, u32 length,
		       struct pcap_frame *frame)
{
	u32 wire_length, captured;

	if (length < 4 || !reader->n_interfaces)
		return -EBADMSG;
	wire_length = captured = read32(reader, body);
	if (reader->interfaces[0].snaplen && captured > reader->interfaces[0].snaplen)
		captured = reader->interfaces[0].snaplen;
	if (captured > length - 4 || captured > LENGTH_MAX)
		return -EBADMSG;
	if (!reader->interfaces[0].ethernet)
		return 0;
	*frame = (struct pcap_frame){.data = body + 4,
				     .length = captured,
				     .wire_length = wire_length,
				     .time_ns = reader->last_ns};
	return 1;
}

/* One block. 1: it held a frame, 0: it did not, -EBADMSG. `body` without the block's type and
 * lengths. */
static int read_block(struct pcap_reader *reader, u32 type, const u8 *body, u32 length,
		      struct pcap_frame *frame)
{
	switch (type) {
	case NG_SECTION:
		return read_section(reader, body, length);
	case NG_INTERFACE:
		return read_interface(reader, body, length);
	case NG_ENHANCED:
		return read_enhanced(reader, body, length, frame);
	case NG_SIMPLE:
		return read_simple(reader, body, length, frame);
	default:
		return 0;
	}
}

static int next_ng(struct pcap_reader *reader, struct pcap_frame *frame)
{
	while (reader->size - reader->at >= NG_BLOCK) {
		const u8 *block = reader->bytes + reader->at;
		u64 left = reader->size - reader->at;
		u32 type = read32(reader, block), length;
		int result;

		/* A section says its own byte order, before its length can be read. */
		if (LOAD_UNALIGNED(u32, block) == NG_SECTION)
			reader->swapped = LOAD_UNALIGNED(u32, block + 8) != NG_MAGIC;
		length = read32(reader, block + 4);
		if (length < NG_BLOCK || length % 4)
			return -EBADMSG;
		if (length > left)
			return 0;
		result = read_block(reader, type, block + 8, length - NG_BLOCK, frame);
		if (result < 0)
			return result;
		reader->at += length;
		if (result)
			return 1;
	}
	return 0;
}

int pcap_reader_next(struct pcap_reader *reader, struct pcap_frame *frame)
{
	int result = reader->ng ? next_ng(reader, frame) : next_classic(reader, frame);

	if (result == 1)
		reader->last_ns = frame->time_ns;
	return result;
}

static u8 *put32(u8 *to, u32 value)
{
	STORE_UNALIGNED(u32, to, value);
	return to + 4;
}

static u8 *put16(u8 *to, u16 value)
{
	STORE_UNALIGNED(u16, to, value);
	return to + 2;
}

u32 pcap_write_head(u8 *to)
{
	u8 *start = to;

	to = put32(to, NG_SECTION);
	to = put32(to, 28);
	to = put32(to, NG_MAGIC);
	to = put16(to, 1);
	to = put16(to, 0);
	to = put32(to, UINT32_MAX); /* the section's length is not known */
	to = put32(to, UINT32_MAX);
	to = put32(to, 28);
	to = put32(to, NG_INTERFACE);
	to = put32(to, 32);
	to = put16(to, LINK_ETHERNET);
	to = put16(to, 0);
	to = put32(to, 0); /* frames are whole */
	to = put16(to, NG_OPTION_RESOLUTION);
	to = put16(to, 1);
	to = put32(to, RESOLUTION_NANOSECONDS);
	to = put32(to, 0); /* no more options */
	to = put32(to, 32);
	return (u32)(to - start);
}

void pcap_write_block_head(u8 *to, u32 length, u64 time_ns)
{
	to = put32(to, NG_ENHANCED);
	to = put32(to, pcap_block_size(length));
	to = put32(to, 0);
	to = put32(to, (u32)(time_ns >> 32));
	to = put32(to, (u32)time_ns);
	to = put32(to, length);
	put32(to, length);
}

u32 pcap_write_block_tail(u8 *to, u32 length)
{
	u32 padding = (4 - length % 4) % 4;

	memset(to, 0, padding);
	put32(to + padding, pcap_block_size(length));
	return padding + 4;
}
