/* Copies of one port's frames for vswitchd, into a ring of shared memory that never makes a worker
 * wait.
 *
 * capture_frame: any worker; the ring has a try-lock, a frame that does not get it or finds no room
 * is counted as lost. Open and close: control thread.
 */
#ifndef VSWITCH_CAPTURE_H
#define VSWITCH_CAPTURE_H

#include "api.h"
#include "packet.h"

struct capture;

/* Maps the ring in `fd` (owned from here on; a memfd sealed against shrinking, one page for struct
 * capture_ring and ring_bytes of data). 0 or -errno. */
int capture_open(int fd, u64 ring_bytes, u32 snaplen, struct capture **out);
void capture_close(struct capture *capture);

/* The frame as it is now (header edits included). A checksum that is still to be made is filled in,
 * in the copy. */
void capture_frame(struct capture *capture, const struct packet *packet, bool from_port,
		   u8 drop_reason);

#endif
