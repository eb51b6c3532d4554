/* Fuzz target: any bytes as a capture file to be replayed.
 *
 * Holds: no look outside the file, every frame inside it, an end is reached, damage stays damage.
 */
#include <stdlib.h>

#include "pcap_file.h"

#define EXPECT(condition)         \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct pcap_reader reader;
	struct pcap_frame frame;
	size_t frames = 0;
	int result;

	if (pcap_reader_open(&reader, data, size))
		return 0;
	while ((result = pcap_reader_next(&reader, &frame)) == 1) {
		EXPECT(frame.data >= data && frame.length <= size - (size_t)(frame.data - data));
		EXPECT(++frames <= size);
	}
	EXPECT(result == 0 || result == -EBADMSG);
	EXPECT(pcap_reader_next(&reader, &frame) == result);
	return 0;
}
