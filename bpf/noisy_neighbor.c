/*
 * purpose: >
 *   Who slows whom down: how long the tasks of each cgroup waited for a CPU, and who held that CPU meanwhile. Exact, and all
 *   of it added up in the kernel.
 * hooks:
 *   switch: ["raw_tracepoint:sched_switch"]
 *   migrate: ["raw_tracepoint:sched_migrate_task"]
 *   populated: ["raw_tracepoint:cgroup_notify_populated"]
 *   moved: ["raw_tracepoint:cgroup_attach_task"]
 *   made: ["raw_tracepoint:cgroup_mkdir"]
 *   wakeup: ["raw_tracepoint:sched_wakeup"]
 * on_demand: [wakeup]
 * types:
 *   - task_struct.sched_info
 *   - sched_info.pcount
 *   - sched_info.run_delay
 *   - sched_info.last_arrival
 *   - sched_info.last_queued
 *   - "task_struct.__state|state"
 *   - task_struct.on_cpu
 *   - task_struct.throttled?
 *   - task_struct.cgroups
 *   - css_set.dfl_cgrp
 *   - css_set.subsys
 *   - cgroup_subsys_state.cgroup
 *   - cgroup.kn
 *   - cgroup.root
 *   - cgroup_root.hierarchy_id
 *   - kernfs_node.id
 *   - task_struct.se
 *   - sched_entity.cfs_rq
 *   - cfs_rq.rq
 *   - cfs_rq.throttled_clock_self?
 *   - cfs_rq.throttled_clock_self_time?
 *   - "cfs_rq.throttled_clock_pelt|throttled_clock_task?"
 *   - "cfs_rq.throttled_clock_pelt_time|throttled_clock_task_time?"
 *   - cfs_rq.throttle_count?
 *   - rq.clock
 *   - rq.clock_task
 *   - rq.clock_pelt?
 *   - rq.nr_switches
 *   - rq.idle
 *   - rq.cpu
 * params:
 *   cpus: {type: u32, default: 64, help: "highest CPU number that can be, plus 1"}
 *   cgroups: {type: u32, default: 1024, help: "cgroups that can be told apart at one time"}
 *   tasks: {type: u32, default: 65536, help: "places for tasks between two of their switches, a power of two"}
 *   shards: {type: u32, default: 64, help: "copies of the sums, one per CPU where memory allows; a power of two"}
 *   atomic: {type: bool, default: 0, help: "CPUs share a copy: add atomically"}
 *   dense: {type: u32, default: 64, help: "the first so many cgroups have their pairs in a table, a power of two"}
 *   dense_shards: {type: u32, default: 64, help: "copies of that table, a power of two"}
 *   cells: {type: u32, default: 16384, help: "pairs of cgroups beyond that"}
 *   log: {type: u32, default: 8192, help: "changes of occupant remembered per CPU, a power of two of 1024 and more"}
 *   subsystem: {type: s32, default: -1, help: "tell cgroups apart in the tree of this v1 controller; -1 is the cgroup2 tree"}
 * maps:
 *   known: {holds: "cgroups by id: their index in the other tables", key: cgroup_id, value: index}
 *   cgroups: {holds: "per shard and index: sums and waits by length"}
 *   pairs: {holds: "per shard, victim and occupant: the first cgroups' table"}
 *   cells: {holds: "the same for all further cgroups", key: pair}
 *   vacant: {holds: "indexes nobody has", numbers_from: 2, internal: true}
 *   born: {holds: "paths of new cgroups, which may be gone before anybody looks", internal: true}
 *   epoch: {holds: "changes whenever a remembered cgroup may be another one", internal: true}
 *   remembered: {holds: "which cgroup a set of cgroups stands for", internal: true}
 *   cpus: {holds: "who held each CPU, and since when", internal: true}
 *   tasks: {holds: "tasks between two of their switches", internal: true}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger:
 *   event: switch-in
 *   losses: [unqueued, clock_backwards]
 *   unseen: unseen
 *   notes:
 *     missed_waits: "waits ended unseen: their time counts, by whom is unknown"
 *     reconstructed: "of them not seen, and taken from the kernel's notes"
 *     cgroups_full: "times a new cgroup found no place and counts as unknown"
 *     cells_full: "times a pair found no place and counts as unknown"
 *     beyond_log: "waits reached back beyond what is remembered of their CPU"
 *     slots_full: "times a cgroup found no total of its own on a CPU: in long waits there it counts as unknown"
 *     evicted: "times a task's place went to another: if it was moved or throttled in its next wait, that part is not told apart"
 * license: GPL-2.0-only
 */
#include "lk.h"

/*
 * When sched_switch fires, next->sched_info is not yet updated: rq->clock - last_queued is what the kernel is about to add to
 * the task's run_delay (sched_info_arrive, kernel/sched/stats.h). So the wait is exact, preempted tasks included, without a
 * stamp of ours. Each CPU keeps a log of which cgroup held it since when; a wait is charged to what the log says of its span.
 */

#define LK_IDLE 0    /* index of nobody: the CPU idles */
#define LK_UNKNOWN 1 /* index of every cgroup that found no place */
#define LK_LOG LK_PARAM_LOG /* changes of occupant remembered one by one, per CPU */
#define LK_WALK 16 /* a wait of up to 16 changes is laid over them, one by one; for longer ones ... */
#define LK_STEP 64 /* ... running totals are noted every 64 changes, ... */
#define LK_NEAR (LK_LOG / LK_STEP) /* ... as far as the log reaches: exact, as it has what lies between two of them, ... */
#define LK_FAR_STEP LK_LOG
#define LK_FAR 32 /* ... and beyond, in proportion between two of them */
#define LK_NOW (LK_NEAR + LK_FAR) /* place of the totals themselves */
#define LK_SLOTS 64        /* occupants with a running total of their own, per CPU */
#define LK_WAYS 4          /* slots that one cgroup may have */
#define LK_SETS 15
#define LK_FIRST_SLOT 2    /* 0 is idle's */
#define LK_STEAL_SLOT 62   /* time that was nobody's: taken by the hypervisor or by interrupts */
#define LK_OTHER_SLOT 63   /* occupants that found their slots taken */
#define LK_SLOT_REST_NS 250000000ULL /* a slot unused for so long may pass to another cgroup */
#define LK_LONG_NS 10000000ULL /* an occupant's stretch is cut after so long, at the next switch */
#define LK_REMEMBERED 512
#define LK_WAIT_SLOTS 256
#define LK_CHECK_EVERY 64 /* switches between two looks at rq->nr_switches */

struct lk_interval {
    u64 start_ns;
    u32 occupant;
    u32 stolen_ns; /* of it, taken by the hypervisor or by interrupts */
};

struct lk_checkpoint {
    u64 time_ns;
    u64 held_ns[LK_SLOTS];
};

/* A stretch of a CPU's time, seen from its end. */
struct lk_stretch {
    u64 start_ns;
    u64 end_ns;
    u64 stolen_ns;
    u64 place; /* how many changes lie before it */
    u32 occupant;
    u32 unused;
};

/* Which of the noted totals a wait is counted from. */
struct lk_base {
    u64 left_ns;  /* of the wait, what is to be charged by them */
    u64 fraction; /* of what came until the next ones, so much is from before the wait; in 1/4096 */
    u64 place;
    u64 next; /* the place of the next ones */
};

struct lk_cpu {
    u64 rq;
    u64 idle;
    u64 task; /* who we think is on the CPU */
    u64 start_ns;
    u64 stolen_ns;         /* rq->clock less rq->clock_task at the start */
    u64 settled_ns;        /* up to here its time is in the totals, */
    u64 settled_stolen_ns; /* with what was stolen up to here */
    u64 first_nr_switches;
    u64 calls;
    u64 made_up; /* switches that we were not called for and know all the same */
    u64 unseen;
    u32 occupant;
    u32 slot;
    u64 changes;
    u32 owner[LK_SLOTS];
    u64 last_ns[LK_SLOTS];
    u64 before_ns[LK_SLOTS]; /* of its total, what is not the owner's */
    struct lk_stretch at; /* while a wait is charged: here, as a BPF program's stack is small */
    struct lk_base base;
    u64 number; /* see forgotten() */
    struct lk_interval log[LK_LOG];
    struct lk_checkpoint totals[LK_NOW + 1];
};

struct lk_task {
    u64 task; /* whose: a place serves one task after another */
    u64 run_delay_ns;
    u64 noted_ns;          /* when it had that run_delay */
    u64 out_ns;            /* when it last left the CPU while runnable */
    u64 throttle_clock_ns; /* its run queue's throttle clock then */
    u64 carried_ns;        /* what it waited on other CPUs before it was moved here */
    u64 throttled;         /* out_ns and throttle_clock_ns are meant */
};

/* Tasks whose addresses lead to the same place. */
struct lk_tasks {
    struct lk_task way[2];
};

struct lk_cgroup {
    u64 wait_ns;
    u64 throttled_ns;
    u64 steal_ns;
    u64 unknown_ns;
    u64 migrated_ns;
    u64 involuntary;
    u64 throttled_outs; /* of them, those that its quota put off the CPU */
    u64 run_ns;
    u64 waits[LK_WAIT_SLOTS];
};

struct lk_cell {
    u64 wait_ns;
    u64 preemptions;
};

struct lk_remembered {
    u64 css_set;
    u64 epoch;
    u32 index;
    u32 unused;
};

/* A cgroup and its path in the cgroup2 tree. The longest of a pod's container is some 190 characters. */
struct lk_born {
    u64 cgroup_id;
    char path[248];
};

struct lk_noisy_ledger {
    u64 calls; /* switches, those to idle too */
    u64 seen;
    u64 delivered;
    u64 unqueued;        /* the kernel has no note since when it waited */
    u64 clock_backwards; /* the note lies in the future */
    u64 unseen;          /* switches that rq->nr_switches counted and we were not called for */
    u64 missed_waits;
    u64 missed_ns;
    u64 reconstructed;
    u64 cgroups_full;
    u64 cells_full;
    u64 beyond_log;
    u64 slots_full;
    u64 evicted;
    u64 migrations;
};

/* BPF_F_MMAPABLE: user space reads these without a system call per entry */
#define LK_MMAPABLE 1024

BPF_HASH(known, u64, u32, LK_PARAM_CGROUPS * 2);
BPF_QUEUE(vacant, u32, LK_PARAM_CGROUPS);
BPF_QUEUE(born, struct lk_born, 1024);
BPF_ARRAY(epoch, u64, 2); /* 0: counted up here, 1: by user space */
BPF_PERCPU_ARRAY(remembered, struct lk_remembered, LK_REMEMBERED);
BPF_F_TABLE("array", u32, struct lk_cgroup, cgroups, LK_PARAM_CGROUPS * LK_PARAM_SHARDS, LK_MMAPABLE);
BPF_F_TABLE("array", u32, struct lk_cell, pairs, LK_PARAM_DENSE * LK_PARAM_DENSE * LK_PARAM_DENSE_SHARDS, LK_MMAPABLE);
BPF_HASH(cells, u64, struct lk_cell, LK_PARAM_CELLS);
BPF_ARRAY(cpus, struct lk_cpu, LK_PARAM_CPUS);
BPF_ARRAY(tasks, struct lk_tasks, LK_PARAM_TASKS / 2);
BPF_PERCPU_ARRAY(ledger, struct lk_noisy_ledger, 1);

/* Copy a kernel object's bytes: for pointers that were kept in a map, and for several fields at once. */
#define LK_READ(into, from) bpf_probe_read_kernel(&(into), sizeof(into), (void *)(from))

#if LK_PARAM_ATOMIC
#define LK_ADD(sum, ns) __sync_fetch_and_add(&(sum), (ns))
#else
#define LK_ADD(sum, ns) ((sum) += (ns))
#endif

/* -- which cgroup ------------------------------------------------------------------------------------------------- */

static __always_inline u64 cgroup_id(struct css_set *set)
{
#if LK_PARAM_SUBSYSTEM >= 0
    struct cgroup_subsys_state *state = NULL;
    struct cgroup *group = NULL;
    struct kernfs_node *node = NULL;
    u64 id = 0;

    LK_READ(state, &set->subsys[LK_PARAM_SUBSYSTEM]);
    LK_READ(group, &state->cgroup);
    LK_READ(node, &group->kn);
    LK_READ(id, &node->id);
    return id;
#else
    return set->dfl_cgrp->kn->id;
#endif
}

static __always_inline u32 find_index(u64 id, struct lk_noisy_ledger *book)
{
    u32 *found = known.lookup(&id);
    u32 index = LK_UNKNOWN;

    if (found)
        return *found;
    if (vacant.pop(&index)) {
        book->cgroups_full++;
        return LK_UNKNOWN;
    }
    if (!known.insert(&id, &index))
        return index;
    vacant.push(&index, 0); /* another CPU was faster, or the table is full */
    found = known.lookup(&id);
    if (found)
        return *found;
    book->cgroups_full++;
    return LK_UNKNOWN;
}

/* A css_set stands for one cgroup as long as it lives; the epoch says when one may have died. */
static __always_inline u32 index_of(struct task_struct *task, struct lk_noisy_ledger *book)
{
    struct css_set *set = task->cgroups;
    u64 address = (u64)set, now = 0, *part;
    int place = ((address >> 6) ^ (address >> 13)) & (LK_REMEMBERED - 1), half = 0;
    struct lk_remembered *note = remembered.lookup(&place);

    if (!note)
        return LK_UNKNOWN;
    part = epoch.lookup(&half);
    if (part)
        now = *part;
    half = 1;
    part = epoch.lookup(&half);
    if (part)
        now += *part;
    if (note->css_set == address && note->epoch == now + 1)
        return note->index;
    note->index = find_index(cgroup_id(set), book);
    note->css_set = address;
    note->epoch = now + 1;
    return note->index;
}

static __always_inline struct lk_cgroup *sums_of(u32 index)
{
    u32 place = (bpf_get_smp_processor_id() & (LK_PARAM_SHARDS - 1)) * LK_PARAM_CGROUPS + index;

    return cgroups.lookup(&place);
}

/* -- adding up ------------------------------------------------------------------------------------------------------ */

/* 64 ns wide below 1 µs, then eight slots to the octave; the last begins a sixteenth below 2^40 ns. labkit/histogram.py. */
static __always_inline u32 wait_slot(u64 ns)
{
    u64 units = ns >> 6, rest;
    u32 shift = 0;

    if (units < 16)
        return units;
    if (units >> 34)
        return LK_WAIT_SLOTS - 1;
    rest = units;
    if (rest >> 32) { shift += 32; rest >>= 32; }
    if (rest >> 16) { shift += 16; rest >>= 16; }
    if (rest >> 8) { shift += 8; rest >>= 8; }
    if (rest >> 4) { shift += 4; rest >>= 4; }
    if (rest >> 2) { shift += 2; rest >>= 2; }
    if (rest >> 1) { shift += 1; }
    shift -= 3;
    return (shift << 3) + (u32)(units >> shift);
}

struct lk_waiter {
    struct lk_cgroup *sums;
    struct lk_noisy_ledger *book;
    u32 victim;
    u32 unused;
};

static __always_inline struct lk_cell *dense_cell(u32 victim, u32 occupant)
{
    u32 place;

    if (victim >= LK_PARAM_DENSE || occupant >= LK_PARAM_DENSE)
        return NULL;
    place = ((bpf_get_smp_processor_id() & (LK_PARAM_DENSE_SHARDS - 1)) * LK_PARAM_DENSE + victim) * LK_PARAM_DENSE + occupant;
    return pairs.lookup(&place);
}

static __always_inline struct lk_cell *far_cell(u32 victim, u32 occupant)
{
    u64 key = ((u64)victim << 32) | occupant;
    struct lk_cell fresh = {};

    return cells.lookup_or_try_init(&key, &fresh);
}

/* The victim waited so long while the occupant held its CPU. */
static __always_inline void charge(struct lk_waiter *waiter, u32 occupant, u64 ns)
{
    struct lk_cell *cell = NULL;

    if (occupant != LK_UNKNOWN) {
        cell = dense_cell(waiter->victim, occupant);
        if (cell) {
            LK_ADD(cell->wait_ns, ns);
            return;
        }
        cell = far_cell(waiter->victim, occupant);
        if (!cell)
            waiter->book->cells_full++;
    }
    if (cell)
        __sync_fetch_and_add(&cell->wait_ns, ns);
    else
        LK_ADD(waiter->sums->unknown_ns, ns);
}

/* A piece of an interval of which a part was nobody's: in proportion, as we only know how much, not when. */
static __always_inline void charge_piece(struct lk_waiter *waiter, u32 occupant, u64 ns, u64 length_ns, u64 stolen_ns)
{
    u64 part = stolen_ns;

    if (!ns)
        return;
    if (stolen_ns && stolen_ns <= length_ns) {
        if (ns < length_ns)
            part = (ns * ((stolen_ns << 10) / length_ns)) >> 10;
        if (part > ns)
            part = ns;
        LK_ADD(waiter->sums->steal_ns, part);
        ns -= part;
        if (!ns)
            return;
    }
    charge(waiter, occupant, ns);
}

/* -- the log of a CPU ----------------------------------------------------------------------------------------------- */

static __always_inline u32 slot_for(struct lk_cpu *cpu, u32 occupant, u64 now, struct lk_noisy_ledger *book)
{
    u32 first, slot, rested = LK_OTHER_SLOT, way;

    if (occupant == LK_IDLE)
        return 0;
    if (occupant == LK_UNKNOWN)
        return LK_OTHER_SLOT;
    first = LK_FIRST_SLOT + occupant % LK_SETS * LK_WAYS;
#pragma unroll
    for (way = 0; way < LK_WAYS; way++) {
        slot = first + way;
        asm volatile("" : "+r"(slot)); /* or clang drops the mask that the verifier needs to see */
        slot &= LK_SLOTS - 1;
        if (cpu->owner[slot] == occupant)
            return slot;
        if (!cpu->owner[slot] || now - cpu->last_ns[slot] >= LK_SLOT_REST_NS)
            rested = slot;
    }
    if (rested == LK_OTHER_SLOT) {
        book->slots_full++;
        return LK_OTHER_SLOT;
    }
    asm volatile("" : "+r"(rested));
    rested &= LK_SLOTS - 1;
    cpu->owner[rested] = occupant;
    cpu->before_ns[rested] = cpu->totals[LK_NOW].held_ns[rested];
    return rested;
}

static __always_inline void note_totals(struct lk_cpu *cpu, u64 place, u64 now)
{
    struct lk_checkpoint *point = &cpu->totals[place];
    u32 i;

    point->time_ns = now;
#pragma nounroll
    for (i = 0; i < LK_SLOTS; i++)
        point->held_ns[i] = cpu->totals[LK_NOW].held_ns[i];
}

/* Totals are noted before the first change, and after every so many: number k after k * step of them. */
static __always_inline void note_all_totals(struct lk_cpu *cpu, u64 now)
{
    if (cpu->changes & (LK_STEP - 1))
        return;
    note_totals(cpu, cpu->changes / LK_STEP & (LK_NEAR - 1), now);
    if (!(cpu->changes & (LK_FAR_STEP - 1)))
        note_totals(cpu, LK_NEAR + (cpu->changes / LK_FAR_STEP & (LK_FAR - 1)), now);
}

/* Bring the totals up to now. */
static __always_inline void settle(struct lk_cpu *cpu, u64 now, u64 stolen)
{
    u64 held = now - cpu->settled_ns, lost = stolen - cpu->settled_stolen_ns;
    struct lk_checkpoint *totals = &cpu->totals[LK_NOW];

    if (lost > held)
        lost = held;
    totals->held_ns[cpu->slot & (LK_SLOTS - 1)] += held - lost;
    totals->held_ns[LK_STEAL_SLOT] += lost;
    cpu->settled_ns = now;
    cpu->settled_stolen_ns = stolen;
}

/* Another cgroup gets the CPU, or it idles. */
static __always_inline void change(struct lk_cpu *cpu, u32 occupant, u64 now, u64 stolen, struct lk_noisy_ledger *book)
{
    struct lk_interval *entry = &cpu->log[cpu->changes & (LK_LOG - 1)];
    u64 held = now - cpu->start_ns, lost = stolen - cpu->stolen_ns;
    struct lk_cgroup *sums;

    settle(cpu, now, stolen);
    if (lost > held)
        lost = held;
    entry->start_ns = cpu->start_ns;
    entry->occupant = cpu->occupant;
    entry->stolen_ns = lost > 0xFFFFFFFF ? 0xFFFFFFFF : lost;
    held -= lost;
    cpu->last_ns[cpu->slot & (LK_SLOTS - 1)] = now;
    if (cpu->occupant != LK_IDLE) {
        sums = sums_of(cpu->occupant);
        if (sums)
            LK_ADD(sums->run_ns, held);
    }
    cpu->changes++;
    note_all_totals(cpu, now);
    cpu->start_ns = now;
    cpu->stolen_ns = stolen;
    cpu->occupant = occupant;
    cpu->slot = slot_for(cpu, occupant, now, book);
}

/* Charge what lies between `since` and the end of the stretch, going back from it through the log. */
static __always_inline void charge_by_log(struct lk_cpu *cpu, struct lk_waiter *waiter, u64 since)
{
    struct lk_stretch *at = &cpu->at;
    struct lk_interval *entry;
    u64 from;
    u32 i;

    for (i = 0; i <= LK_STEP; i++) {
        from = at->start_ns > since ? at->start_ns : since;
        if (at->end_ns > from)
            charge_piece(waiter, at->occupant, at->end_ns - from, at->end_ns - at->start_ns, at->stolen_ns);
        at->end_ns = from;
        if (at->start_ns <= since || i == LK_STEP)
            break;
        at->place--;
        entry = &cpu->log[at->place & (LK_LOG - 1)];
        if (!entry->start_ns)
            break;
        at->start_ns = entry->start_ns;
        at->stolen_ns = entry->stolen_ns;
        at->occupant = entry->occupant;
    }
    if (at->end_ns > since) { /* before the first look at this CPU */
        waiter->book->beyond_log++;
        LK_ADD(waiter->sums->unknown_ns, at->end_ns - since);
    }
}

/* The same number, but the verifier forgets what it knows of it: else it follows each possible value to the end. */
static __always_inline u64 forgotten(struct lk_cpu *cpu, u64 number)
{
    *(volatile u64 *)&cpu->number = number;
    return *(volatile u64 *)&cpu->number;
}

/* The last totals, of `many` kept, that were noted at `since` or before it; else the oldest. Returns their number. */
static __always_inline u64 last_before(struct lk_cpu *cpu, u64 since, u64 newest, u32 offset, u32 many)
{
    u64 number = newest >= many ? newest - many + 1 : 0;
    u32 step, place;

#pragma unroll
    for (step = many / 2; step > 0; step >>= 1) {
        place = offset + ((number + step) & (many - 1));
        if (number + step <= newest && cpu->totals[place].time_ns <= since)
            number += step;
    }
    return forgotten(cpu, number);
}

/* Charge what the running totals have grown by since they were noted. */
static __always_inline void charge_by_totals(struct lk_cpu *cpu, struct lk_waiter *waiter)
{
    struct lk_checkpoint *base, *next, *totals = &cpu->totals[LK_NOW];
    u64 left = cpu->base.left_ns, fraction = cpu->base.fraction, place = cpu->base.place, following = cpu->base.next, ns, own;
    u32 i;

    asm volatile("" : "+r"(place), "+r"(following)); /* or clang bounds copies of them */
    if (place > LK_NOW || following > LK_NOW)
        return;
    base = &cpu->totals[place];
    next = &cpu->totals[following];
    for (i = 0; i < LK_SLOTS; i++) {
        ns = totals->held_ns[i] - base->held_ns[i] - (((next->held_ns[i] - base->held_ns[i]) * fraction) >> 12);
        if (ns > left)
            ns = left;
        if (!ns)
            continue;
        left -= ns;
        if (i == LK_STEAL_SLOT) {
            LK_ADD(waiter->sums->steal_ns, ns);
            continue;
        }
        own = i == LK_OTHER_SLOT ? 0 : totals->held_ns[i] - cpu->before_ns[i];
        if (own < ns) {
            LK_ADD(waiter->sums->unknown_ns, ns - own);
            ns = own;
        }
        charge(waiter, cpu->owner[i], ns);
    }
    LK_ADD(waiter->sums->unknown_ns, left); /* rounding */
}

/*
 * A wait of more changes than are walked through: from the first totals noted in it up to now by the totals, and what lies
 * before them by the log. If the log does not reach so far, by the totals alone, the first part of them in proportion.
 */
static __always_inline void charge_long_wait(struct lk_cpu *cpu, struct lk_waiter *waiter, u64 since, u64 now, u64 stolen)
{
    struct lk_stretch *at = &cpu->at;
    struct lk_base *base = &cpu->base;
    u64 newest = cpu->changes / LK_STEP, number = last_before(cpu, since, newest, 0, LK_NEAR), noted, span;

    if (number >= newest) /* none was noted since it began: the log's end has it all */
        return;
    settle(cpu, now, stolen);
    base->next = LK_NOW;
    base->fraction = 0;
    base->place = number & (LK_NEAR - 1);
    noted = cpu->totals[base->place].time_ns;
    if (noted <= since || !number) {
        if (noted < since) {
            number++;
            base->place = number & (LK_NEAR - 1);
            noted = cpu->totals[base->place].time_ns;
        }
        at->start_ns = noted;
        at->end_ns = noted;
        at->place = number * LK_STEP;
        base->left_ns = now - noted;
    } else {
        at->start_ns = since;
        at->end_ns = since;
        newest = cpu->changes / LK_FAR_STEP;
        number = last_before(cpu, since, newest, LK_NEAR, LK_FAR);
        base->place = LK_NEAR + (number & (LK_FAR - 1));
        base->left_ns = now - since;
        noted = cpu->totals[base->place].time_ns;
        if (noted > since) {
            waiter->book->beyond_log++;
            LK_ADD(waiter->sums->unknown_ns, noted - since);
            base->left_ns = now - noted;
        } else {
            span = now - noted;
            if (number < newest) {
                base->next = LK_NEAR + ((number + 1) & (LK_FAR - 1));
                span = cpu->totals[base->next].time_ns - noted;
            }
            base->fraction = span ? ((since - noted) << 12) / span : 0;
        }
    }
    charge_by_totals(cpu, waiter);
}

/*
 * The wait of [since, now) on this CPU, of which the first part went by under the victim's own quota. With `any_length`
 * false, what lies more than a few changes back is unknown: where long waits are not to be expected, the verifier is spared
 * the code for them.
 */
static __always_inline void charge_wait(struct lk_cpu *cpu, struct lk_waiter *waiter, u64 since, u64 now, u64 stolen,
                                        u64 throttled_ns, bool any_length)
{
    struct lk_stretch *at = &cpu->at;
    u64 wait_ns = now - since;

    LK_ADD(waiter->sums->wait_ns, wait_ns);
    if (throttled_ns) {
        if (throttled_ns > wait_ns)
            throttled_ns = wait_ns;
        LK_ADD(waiter->sums->throttled_ns, throttled_ns);
        since += throttled_ns;
    }
    since = forgotten(cpu, since);
    if (since >= now)
        return;
    at->start_ns = cpu->start_ns;
    at->end_ns = now;
    at->stolen_ns = stolen - cpu->stolen_ns;
    at->place = cpu->changes;
    at->occupant = cpu->occupant;
    if (any_length && cpu->changes >= LK_WALK &&
        cpu->log[(cpu->changes - LK_WALK) & (LK_LOG - 1)].start_ns > since)
        charge_long_wait(cpu, waiter, since, now, stolen);
    charge_by_log(cpu, waiter, since);
}

/* -- quotas --------------------------------------------------------------------------------------------------------- */

/*
 * How long the task's run queue, or one above it, has been throttled so far. Only differences mean something.
 * throttled_clock_self since 6.6 (commit 677ea015f231); before, the clocks that load tracking keeps, which stand still while
 * the CPU idles: an upper bound.
 */
#define LK_NAMED_throttled_clock_pelt 1 /* since 5.19 (commit 64eaf50731ac); else it is throttled_clock_task */
#define LK_NAMED_(name) LK_NAMED_##name
#define LK_NAMED(name) LK_NAMED_(name)

static __always_inline u64 throttle_clock(struct cfs_rq *queue, u64 now)
{
#if defined(LK_HAS_cfs_rq_throttled_clock_self) && defined(LK_HAS_cfs_rq_throttled_clock_self_time)
    u64 since = 0, total = 0;

    LK_READ(since, &queue->throttled_clock_self);
    LK_READ(total, &queue->throttled_clock_self_time);
    return total + (since && now > since ? now - since : 0);
#elif defined(LK_HAS_cfs_rq_throttled_clock_pelt) && defined(LK_HAS_cfs_rq_throttled_clock_pelt_time)
    u64 since = 0, total = 0, clock = 0;
    struct rq *rq = NULL;
    int depth = 0;

    LK_READ(total, &queue->LK_cfs_rq_throttled_clock_pelt_time);
    LK_READ(depth, &queue->throttle_count);
    if (!depth)
        return total;
    LK_READ(since, &queue->LK_cfs_rq_throttled_clock_pelt);
    LK_READ(rq, &queue->rq);
#if LK_NAMED(LK_cfs_rq_throttled_clock_pelt)
    LK_READ(clock, &rq->clock_pelt);
#else
    LK_READ(clock, &rq->clock_task);
#endif
    return total + (clock > since ? clock - since : 0);
#else
    return 0;
#endif
}

static __always_inline u64 throttle_clock_of(struct task_struct *task, u64 now)
{
    struct cfs_rq *queue = NULL;

    LK_READ(queue, &task->se.cfs_rq);
    return throttle_clock(queue, now);
}

/* How much of the wait since `since` went by under a quota: it is the head of the wait. */
static __always_inline u64 throttled_part(struct lk_task *state, struct task_struct *task, u64 since, u64 now)
{
    u64 clock;

    if (!state->throttled || state->out_ns != since)
        return 0;
    clock = throttle_clock_of(task, now);
    return clock > state->throttle_clock_ns ? clock - state->throttle_clock_ns : 0;
}

/* -- tasks ---------------------------------------------------------------------------------------------------------- */

/* Run queues' clocks may be apart by so much between two CPUs. */
#define LK_CLOCKS_APART_NS 1000000

static __always_inline struct lk_tasks *places_of(struct task_struct *task)
{
    u64 address = (u64)task;
    int place = ((address >> 6) * 0x9E3779B97F4A7C15ULL >> 32) & (LK_PARAM_TASKS / 2 - 1);

    return tasks.lookup(&place);
}

static __always_inline struct lk_task *way_of(struct lk_tasks *places, u64 way)
{
    asm volatile("" : "+r"(way)); /* one pointer for the verifier to follow, not two */
    return &places->way[way & 1];
}

/* What is remembered of a task; NULL if nothing is. */
static __always_inline struct lk_task *recall(struct task_struct *task)
{
    struct lk_tasks *places = places_of(task);
    struct lk_task *state;

    if (!places)
        return NULL;
    state = way_of(places, places->way[1].task == (u64)task);
    if (state->task != (u64)task)
        state = NULL;
    asm volatile("" : "+r"(state)); /* or clang asks the same question again, where the verifier cannot know the answer */
    return state;
}

/* Remember a task, in place of the one that was seen longest ago. */
static __always_inline struct lk_task *adopt(struct task_struct *task, u64 run_delay_ns, u64 now,
                                             struct lk_noisy_ledger *book)
{
    struct lk_tasks *places = places_of(task);
    struct lk_task *state;

    if (!places)
        return NULL;
    state = way_of(places, places->way[1].noted_ns < places->way[0].noted_ns);
    if (state->task && state->task != (u64)task)
        book->evicted++;
    state->task = (u64)task;
    state->run_delay_ns = run_delay_ns;
    state->noted_ns = now;
    state->carried_ns = 0;
    state->throttled = 0;
    return state;
}

/* The task has ended: its place is free, and who comes to the same address is another. */
static __always_inline void forget(struct task_struct *task)
{
    struct lk_task *state = recall(task);

    if (!state)
        return;
    state->task = 0;
    state->noted_ns = 0;
}

/*
 * What run_delay grew by since it was noted. More than the time that went by is another task's, at the same address: then
 * the note is made anew.
 */
static __always_inline u64 grown(struct lk_task *state, u64 run_delay_ns, u64 now)
{
    u64 by = run_delay_ns - state->run_delay_ns, since = now > state->noted_ns ? now - state->noted_ns : 0;

    if (run_delay_ns >= state->run_delay_ns && by <= since + LK_CLOCKS_APART_NS)
        return by;
    state->run_delay_ns = run_delay_ns;
    state->carried_ns = 0;
    state->throttled = 0;
    return 0;
}

/* The wait is over; what came of it before a migration belongs to it. */
static __always_inline void count_wait(struct lk_task *state, struct lk_waiter *waiter, u64 wait_ns)
{
    u32 slot = wait_slot(wait_ns + state->carried_ns) & (LK_WAIT_SLOTS - 1);

    state->carried_ns = 0;
    state->throttled = 0;
    LK_ADD(waiter->sums->waits[slot], 1);
}

/* -- a switch ------------------------------------------------------------------------------------------------------- */

struct lk_clocks {
    u64 now;
    u64 stolen; /* grows by the time that interrupts and the hypervisor took */
};

/* rq->clock, and how far clock_task has fallen behind it. One read where they lie close together, in whichever order. */
#define LK_CLOCK_AT __builtin_offsetof(struct rq, clock)
#define LK_CLOCK_TASK_AT __builtin_offsetof(struct rq, clock_task)
#define LK_CLOCKS_AT (LK_CLOCK_AT < LK_CLOCK_TASK_AT ? LK_CLOCK_AT : LK_CLOCK_TASK_AT)
#define LK_CLOCKS_WORDS ((LK_CLOCK_AT + LK_CLOCK_TASK_AT - 2 * LK_CLOCKS_AT) / 8 + 1)
#define LK_CLOCKS_CLOSE (LK_CLOCKS_WORDS <= 16)

static __always_inline void read_clocks(struct rq *rq, struct lk_clocks *clocks)
{
    u64 words[LK_CLOCKS_CLOSE ? LK_CLOCKS_WORDS : 1] = {}, task = 0;

    if (LK_CLOCKS_CLOSE) {
        LK_READ(words, (char *)rq + LK_CLOCKS_AT);
        clocks->now = words[(LK_CLOCK_AT - LK_CLOCKS_AT) / 8];
        task = words[(LK_CLOCK_TASK_AT - LK_CLOCKS_AT) / 8];
    } else {
        LK_READ(clocks->now, &rq->clock);
        LK_READ(task, &rq->clock_task);
    }
    clocks->stolen = clocks->now - task;
}

static __always_inline void first_look(struct lk_cpu *cpu, struct task_struct *prev, struct task_struct *next,
                                       struct lk_clocks *clocks, struct lk_noisy_ledger *book)
{
    struct cfs_rq *queue = NULL;
    struct rq *rq = NULL;

    LK_READ(queue, &next->se.cfs_rq);
    LK_READ(rq, &queue->rq);
    LK_READ(cpu->idle, &rq->idle);
    LK_READ(cpu->first_nr_switches, &rq->nr_switches);
    read_clocks(rq, clocks);
    cpu->owner[LK_OTHER_SLOT] = LK_UNKNOWN;
    cpu->task = (u64)prev;
    cpu->occupant = (u64)prev == cpu->idle ? LK_IDLE : index_of(prev, book);
    cpu->slot = slot_for(cpu, cpu->occupant, clocks->now, book);
    cpu->start_ns = clocks->now;
    cpu->stolen_ns = clocks->stolen;
    cpu->settled_ns = clocks->now;
    cpu->settled_stolen_ns = clocks->stolen;
    note_all_totals(cpu, clocks->now);
    cpu->rq = (u64)rq;
}

/* The kernel counts every switch of a CPU; what it counted beyond our calls is unseen. */
static __always_inline void check_calls(struct lk_cpu *cpu, struct lk_noisy_ledger *book)
{
    u64 switches = 0, unseen;

    book->calls++;
    if (cpu->calls++ & (LK_CHECK_EVERY - 1))
        return;
    LK_READ(switches, &((struct rq *)cpu->rq)->nr_switches);
    unseen = switches - cpu->first_nr_switches + 1 - cpu->calls - cpu->made_up;
    book->unseen += unseen - cpu->unseen;
    cpu->unseen = unseen;
}

/*
 * The task got this CPU and we were not called: what its run_delay grew by since is the wait that ended when it arrived, and
 * up to then the log stands.
 */
static __always_inline void make_up(struct lk_cpu *cpu, struct task_struct *task, u32 victim, u64 arrived_ns,
                                    struct lk_noisy_ledger *book)
{
    struct lk_waiter waiter = {.victim = victim, .book = book, .sums = sums_of(victim)};
    struct lk_task *state = recall(task);
    u64 run_delay_ns = 0, wait_ns, throttled_ns;

    if (!state || !waiter.sums)
        return;
    LK_READ(run_delay_ns, &task->sched_info.run_delay);
    wait_ns = grown(state, run_delay_ns, arrived_ns);
    if (wait_ns > arrived_ns)
        return;
    throttled_ns = throttled_part(state, task, arrived_ns - wait_ns, arrived_ns);
    state->run_delay_ns = run_delay_ns;
    state->noted_ns = arrived_ns;
    count_wait(state, &waiter, wait_ns);
    charge_wait(cpu, &waiter, arrived_ns - wait_ns, arrived_ns, cpu->stolen_ns, throttled_ns, false);
    cpu->made_up++;
    book->seen++;
    book->delivered++;
    book->reconstructed++;
}

/* We were not called when this task got the CPU: the kernel notes when that was. */
static __always_inline void correct(struct lk_cpu *cpu, struct task_struct *prev, struct lk_clocks *clocks,
                                    struct lk_noisy_ledger *book)
{
    u64 arrived = 0;
    u32 occupant = LK_IDLE;

    /*
     * A CPU that is found idle: a wait that ends here began after it fell idle, or the task would have been taken instead of
     * the idle one. So it may count as idle all along.
     */
    if ((u64)prev == cpu->idle) {
        change(cpu, LK_IDLE, cpu->start_ns, cpu->stolen_ns, book);
        return;
    }
    occupant = index_of(prev, book);
    LK_READ(arrived, &prev->sched_info.last_arrival);
    if (arrived < cpu->start_ns || arrived > clocks->now)
        arrived = cpu->start_ns;
    make_up(cpu, prev, occupant, arrived, book);
    if (occupant != cpu->occupant)
        change(cpu, occupant, arrived, cpu->stolen_ns, book);
}

/* The task leaves though it would go on: it waits from now. Returns true if its quota is why. */
static __always_inline bool put_off(struct task_struct *prev, u64 now, struct lk_noisy_ledger *book)
{
    struct lk_task *state = recall(prev);
    unsigned char throttled = 0;
    u64 run_delay_ns = 0;

#ifdef LK_HAS_task_struct_throttled /* since 6.18 (commit e1fad12dcb66) */
    LK_READ(throttled, &prev->throttled);
    if (!throttled) {
        if (state)
            state->throttled = 0;
        return false;
    }
#endif
    if (!state) {
        LK_READ(run_delay_ns, &prev->sched_info.run_delay);
        state = adopt(prev, run_delay_ns, now, book);
        if (!state)
            return false;
    }
    state->throttled = 1;
    state->out_ns = now;
    state->throttle_clock_ns = throttle_clock_of(prev, now);
    return throttled;
}

static __always_inline void count_put_off(u32 victim, u32 occupant, bool by_quota, struct lk_noisy_ledger *book)
{
    struct lk_cgroup *sums = sums_of(victim);
    struct lk_cell *cell;

    if (!sums)
        return;
    LK_ADD(sums->involuntary, 1);
    if (by_quota) {
        LK_ADD(sums->throttled_outs, 1);
        return;
    }
    if (occupant == LK_UNKNOWN)
        return;
    cell = dense_cell(victim, occupant);
    if (cell) {
        LK_ADD(cell->preemptions, 1);
        return;
    }
    cell = far_cell(victim, occupant);
    if (cell)
        __sync_fetch_and_add(&cell->preemptions, 1);
    else
        book->cells_full++;
}

/* run_delay grew while we did not look: that was a wait too, but who held the CPU is unknown. */
static __always_inline void take_in(u64 missed_ns, struct lk_waiter *waiter)
{
    if (!missed_ns)
        return;
    waiter->book->missed_waits++;
    waiter->book->missed_ns += missed_ns;
    LK_ADD(waiter->sums->wait_ns, missed_ns);
    LK_ADD(waiter->sums->unknown_ns, missed_ns);
}

/* The task gets the CPU: its wait is over. */
static __always_inline void entered(struct lk_cpu *cpu, struct task_struct *next, struct lk_clocks *clocks,
                                    struct lk_waiter *waiter)
{
    struct lk_task *state = recall(next);
    struct sched_info info = {};
    u64 wait_ns, throttled_ns;

    LK_READ(info, &next->sched_info);
    waiter->book->seen++;
    if (!info.last_queued) {
        waiter->book->unqueued++;
        return;
    }
    if (info.last_queued > clocks->now) {
        waiter->book->clock_backwards++;
        return;
    }
    if (!state)
        state = adopt(next, info.run_delay, clocks->now, waiter->book);
    if (!state)
        return;
    wait_ns = clocks->now - info.last_queued;
    take_in(grown(state, info.run_delay, clocks->now), waiter);
    throttled_ns = throttled_part(state, next, info.last_queued, clocks->now);
    state->run_delay_ns = info.run_delay + wait_ns;
    state->noted_ns = clocks->now;
    count_wait(state, waiter, wait_ns);
    charge_wait(cpu, waiter, info.last_queued, clocks->now, clocks->stolen, throttled_ns, true);
    waiter->book->delivered++;
}

/* (bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state]) */
int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    struct lk_waiter waiter = {};
    struct lk_clocks clocks = {};
    u32 number = bpf_get_smp_processor_id(), left, index = LK_IDLE;
    struct lk_cpu *cpu = cpus.lookup(&number);
    bool off, by_quota = false;
    u64 prev_state;
    int first = 0;

    waiter.book = ledger.lookup(&first);
    if (!cpu || !waiter.book)
        return 0;
    if (!cpu->rq)
        first_look(cpu, prev, next, &clocks, waiter.book);
    else
        read_clocks((struct rq *)cpu->rq, &clocks);
    check_calls(cpu, waiter.book);
    if (cpu->task != (u64)prev)
        correct(cpu, prev, &clocks, waiter.book);
    cpu->task = (u64)next;
    left = cpu->occupant;
#if LK_ARGS_sched_switch >= 4 /* since 5.18 (commit fa2c3254d7cf) */
    prev_state = ctx->args[3];
#else
    prev_state = prev->LK_task_struct___state;
#endif
    if (prev_state & LK_TASK_DEAD)
        forget(prev);
    off = (u64)prev != cpu->idle && (ctx->args[0] || !prev_state);
    if (off)
        by_quota = put_off(prev, clocks.now, waiter.book);
    if ((u64)next != cpu->idle)
        index = index_of(next, waiter.book);
    if (off)
        count_put_off(left, index, by_quota, waiter.book);
    if (index != LK_IDLE) {
        waiter.victim = index;
        waiter.sums = sums_of(index);
        if (!waiter.sums)
            return 0;
        entered(cpu, next, &clocks, &waiter);
    }
    /* One who keeps the CPU has its time counted now and then all the same. */
    if (cpu->occupant != index || clocks.now - cpu->start_ns >= LK_LONG_NS)
        change(cpu, index, clocks.now, clocks.stolen, waiter.book);
    return 0;
}

/*
 * (struct task_struct *p, int dest_cpu), in set_task_cpu(). If the task was waiting, the kernel has just added the wait so far
 * to its run_delay (sched_info_dequeue), and holds the lock of the run queue that it leaves: its log stands still.
 */
int lk_migrate(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    struct lk_task *state = recall(task);
    struct lk_waiter waiter = {};
    struct lk_clocks clocks = {};
    struct sched_info info = {};
    struct cfs_rq *queue = NULL;
    struct rq *rq = NULL;
    struct lk_cpu *cpu;
    u64 wait_ns, throttled_ns;
    int number = 0, first = 0;

    LK_READ(info, &task->sched_info);
    if (!info.run_delay || (!state && info.pcount)) /* of a task that has run before, nobody knows what is new in it */
        return 0;
    if (state && info.run_delay == state->run_delay_ns)
        return 0;
    LK_READ(queue, &task->se.cfs_rq);
    LK_READ(rq, &queue->rq);
    LK_READ(number, &rq->cpu);
    cpu = cpus.lookup(&number);
    waiter.book = ledger.lookup(&first);
    if (!cpu || !waiter.book || cpu->rq != (u64)rq)
        return 0; /* the next switch-in takes it in */
    read_clocks(rq, &clocks);
    if (!state) { /* it never ran: all that it waited is new */
        state = adopt(task, 0, clocks.now, waiter.book);
        if (!state)
            return 0;
        state->noted_ns = 0;
    }
    wait_ns = grown(state, info.run_delay, clocks.now);
    if (!wait_ns || clocks.now < wait_ns)
        return 0;
    waiter.victim = index_of(task, waiter.book);
    waiter.sums = sums_of(waiter.victim);
    if (!waiter.sums)
        return 0;
    waiter.book->migrations++;
    throttled_ns = throttled_part(state, task, clocks.now - wait_ns, clocks.now);
    state->run_delay_ns = info.run_delay;
    state->noted_ns = clocks.now;
    state->carried_ns += wait_ns;
    state->throttled = 0;
    LK_ADD(waiter.sums->migrated_ns, wait_ns);
    charge_wait(cpu, &waiter, clocks.now - wait_ns, clocks.now, clocks.stolen, throttled_ns, true);
    return 0;
}

static __always_inline int new_epoch(void)
{
    int half = 0;
    u64 *part = epoch.lookup(&half);

    if (part)
        __sync_fetch_and_add(part, 1);
    return 0;
}

int lk_populated(struct bpf_raw_tracepoint_args *ctx)
{
    return new_epoch();
}

int lk_moved(struct bpf_raw_tracepoint_args *ctx)
{
    return new_epoch();
}

/* (struct cgroup *cgrp, const char *path). If the queue is full, its name is looked for as that of any other. */
int lk_made(struct bpf_raw_tracepoint_args *ctx)
{
    struct cgroup *group = (struct cgroup *)ctx->args[0];
    struct lk_born fresh = {};

    if (LK_PARAM_SUBSYSTEM >= 0 || group->root->hierarchy_id) /* 0 is the cgroup2 tree's (cgroup_init, kernel/cgroup/cgroup.c) */
        return 0;
    fresh.cgroup_id = group->kn->id;
    bpf_probe_read_kernel_str(&fresh.path, sizeof(fresh.path), (void *)ctx->args[1]);
    born.push(&fresh, 0);
    return 0;
}

#ifndef LK_HAS_task_struct_throttled
/* Before 6.18 nothing tells whether a woken task is queued behind its quota: the clock does, if noted now. */
int lk_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    struct lk_task *state = recall(task);
    struct cfs_rq *queue = NULL;
    struct rq *rq = NULL;
    u64 now = 0;

    if (!state || task->on_cpu)
        return 0;
    LK_READ(queue, &task->se.cfs_rq);
    LK_READ(rq, &queue->rq);
    LK_READ(now, &rq->clock);
    LK_READ(state->out_ns, &task->sched_info.last_queued);
    state->throttle_clock_ns = throttle_clock(queue, now);
    state->throttled = 1;
    return 0;
}
#endif
