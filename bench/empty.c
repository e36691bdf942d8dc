/*
 * purpose: The floor - a program at sched_switch that does nothing.
 * hooks:
 *   switch: ["raw_tracepoint:sched_switch"]
 * maps: {}
 * license: GPL-2.0-only
 */
#include "lk.h"

int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    return 0;
}
