/*
 * lk.h - what the lab's programs share. Plain C on values only: bcc rewrites map calls and kernel reads in the
 * program's own file and nowhere else.
 */
#pragma once
#include "lk_generated.h"

#define LK_TASK_COMM_LEN 16
#define LK_TASK_DEAD 0x80 /* include/linux/sched.h: the last switch-out of a task that exits */

/* Slot of a log2 histogram: 0 holds the value 0, slot k holds 2^(k-1) <= v < 2^k. See labkit/histogram.py. */
static __always_inline unsigned int lk_log2_slot(unsigned long long v)
{
    unsigned int slot = 0;

    if (v >> 32) { slot += 32; v >>= 32; }
    if (v >> 16) { slot += 16; v >>= 16; }
    if (v >> 8) { slot += 8; v >>= 8; }
    if (v >> 4) { slot += 4; v >>= 4; }
    if (v >> 2) { slot += 2; v >>= 2; }
    if (v >> 1) { slot += 1; v >>= 1; }
    return slot + (v ? 1 : 0);
}
