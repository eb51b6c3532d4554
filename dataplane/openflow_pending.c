#include "openflow.h"
int openflow_apply(struct openflow_target *target, const u8 *messages, u32 length, u8 *reply, u32 reply_size, u32 *reply_length)
{ (void)target; (void)messages; (void)length; (void)reply; (void)reply_size; *reply_length = 0; return -EOPNOTSUPP; }
