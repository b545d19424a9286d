// SPDX-License-Identifier: BSD-3-Clause
/*
 * Register programs: many accesses of a region in one call, and waiting for a register.
 *
 * A step that the window does not hold is left to the caller, who goes on behind it.
 */
#include <errno.h>
#include <stdint.h>
#include <time.h>

enum {
    STEP_READ,
    STEP_READ_LO_HI,
    STEP_READ_HI_LO,
    STEP_WRITE,
    STEP_WRITE_LO_HI,
    STEP_WRITE_HI_LO,
    STEP_MODIFY,
    STEP_POLL,
    STEP_BARRIER,
    STEP_READ_BARRIER,
    STEP_WRITE_BARRIER,
};

/* An item of a numpy array; see pyvfio.program. */
struct pyvfio_step {
    uint16_t op;
    uint16_t width;
    uint32_t unused;
    uint64_t offset;
    uint64_t value;
    uint64_t mask;
    double timeout;
    uint64_t result;
};

/* Where a program is; all 0 at first. */
struct pyvfio_run {
    uint64_t at;      /* the step that is next, or failed */
    uint64_t started; /* when a poll that is under way began, in ns; else 0 */
};

enum { RUN_DONE, RUN_PAUSED, RUN_MISSED, RUN_FAULTED, RUN_TIMED_OUT };

/* A signal handler of Python runs between two calls, so that none takes long. */
#define MOST_STEPS 4096
#define LONGEST_CALL 10000000 /* ns of a poll */

/* A register is looked at without a pause at first; then the pauses grow with the time it takes. */
#define SPINNING 20000 /* ns */
#define LONGEST_PAUSE 1000000

static uint64_t nanoseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static struct pyvfio_loaded load(const struct pyvfio_window *window, uint64_t offset,
                                 unsigned width)
{
    switch (width) {
    case 1: return checked_load8(window, offset);
    case 2: return checked_load16(window, offset);
    case 4: return checked_load32(window, offset);
    case 8: return checked_load64(window, offset);
    }
    return (struct pyvfio_loaded){0, PYVFIO_MISSED};
}

static uint64_t store(const struct pyvfio_window *window, uint64_t offset, unsigned width,
                      uint64_t value)
{
    switch (width) {
    case 1: return pyvfio_store8(window, offset, (uint8_t)value);
    case 2: return pyvfio_store16(window, offset, (uint16_t)value);
    case 4: return pyvfio_store32(window, offset, (uint32_t)value);
    case 8: return pyvfio_store64(window, offset, value);
    }
    return PYVFIO_MISSED;
}

static int why(uint64_t failure)
{
    if (!failure)
        return RUN_DONE;
    return failure == PYVFIO_FAULTED ? RUN_FAULTED : RUN_MISSED;
}

static int keep(struct pyvfio_step *step, struct pyvfio_loaded loaded)
{
    if (!loaded.failure)
        step->result = loaded.value;
    return why(loaded.failure);
}

static int modify(const struct pyvfio_window *window, struct pyvfio_step *step)
{
    struct pyvfio_loaded loaded;
    int failure;

    if (!window->writable)
        return RUN_MISSED;
    loaded = load(window, step->offset, step->width);
    failure = keep(step, loaded);
    return failure ? failure
                   : why(store(window, step->offset, step->width,
                               (loaded.value & ~step->mask) | (step->value & step->mask)));
}

/* Returns whether nothing has cut the pause short. */
static int pause_for(uint64_t waited)
{
    uint64_t length = waited / 8 < LONGEST_PAUSE ? waited / 8 : LONGEST_PAUSE;
    struct timespec pause = {0, (long)length};

    return !nanosleep(&pause, NULL);
}

static int poll_register(const struct pyvfio_window *window, struct pyvfio_step *step,
                         struct pyvfio_run *run)
{
    uint64_t called = nanoseconds(), now = called, waited;
    int failure;

    if (!run->started)
        run->started = called;
    for (;;) {
        failure = keep(step, load(window, step->offset, step->width));
        if (failure)
            return failure;
        if ((step->result & step->mask) == step->value)
            return RUN_DONE;
        waited = now - run->started; /* as it was before the last look */
        if ((double)waited >= step->timeout * 1e9)
            return RUN_TIMED_OUT;
        if (now - called >= LONGEST_CALL || (waited > SPINNING && !pause_for(waited)))
            return RUN_PAUSED;
        now = nanoseconds();
    }
}

static int run_step(const struct pyvfio_window *window, struct pyvfio_step *step,
                    struct pyvfio_run *run)
{
    uint64_t offset = step->offset;

    switch (step->op) {
    case STEP_READ: return keep(step, load(window, offset, step->width));
    case STEP_READ_LO_HI: return keep(step, pyvfio_load64_halves(window, offset, 0));
    case STEP_READ_HI_LO: return keep(step, pyvfio_load64_halves(window, offset, 1));
    case STEP_WRITE: return why(store(window, offset, step->width, step->value));
    case STEP_WRITE_LO_HI: return why(pyvfio_store64_halves(window, offset, step->value, 0));
    case STEP_WRITE_HI_LO: return why(pyvfio_store64_halves(window, offset, step->value, 1));
    case STEP_MODIFY: return modify(window, step);
    case STEP_POLL: return poll_register(window, step, run);
    case STEP_BARRIER: FULL_BARRIER(); return RUN_DONE;
    case STEP_READ_BARRIER: READ_BARRIER(); return RUN_DONE;
    case STEP_WRITE_BARRIER: WRITE_BARRIER(); return RUN_DONE;
    }
    return RUN_MISSED;
}

/* Go on with a program of count steps; says why it stopped. */
static int pyvfio_run(const struct pyvfio_window *window, struct pyvfio_step *steps,
                      uint64_t count, struct pyvfio_run *run)
{
    uint64_t end = count - run->at > MOST_STEPS ? run->at + MOST_STEPS : count;

    for (; run->at < end; run->at++) {
        int ended = run_step(window, &steps[run->at], run);

        if (ended != RUN_DONE)
            return ended;
        run->started = 0;
    }
    return run->at < count ? RUN_PAUSED : RUN_DONE;
}

/* Whether a step makes sense: its operation, width, place, values and time-out. */
static int makes_sense(const struct pyvfio_window *window, const struct pyvfio_step *step)
{
    int reads = step->op <= STEP_READ_HI_LO || step->op == STEP_MODIFY || step->op == STEP_POLL;
    int writes = step->op >= STEP_WRITE && step->op <= STEP_MODIFY;
    int halves = step->op == STEP_READ_LO_HI || step->op == STEP_READ_HI_LO
                 || step->op == STEP_WRITE_LO_HI || step->op == STEP_WRITE_HI_LO;
    unsigned width = step->width;
    uint64_t beyond;

    if (step->op >= STEP_BARRIER)
        return step->op <= STEP_WRITE_BARRIER;
    if ((width != 1 && width != 2 && width != 4 && width != 8) || (halves && width != 8))
        return 0;
    if (step->offset & ((halves ? width / 2 : width) - 1))
        return 0;
    if (step->offset > window->size || width > window->size - step->offset)
        return 0;
    if ((reads && !window->readable) || (writes && !window->writable))
        return 0;
    beyond = width == 8 ? 0 : ~UINT64_C(0) << 8 * width;
    if ((writes || step->op == STEP_POLL) && (step->value & beyond))
        return 0;
    if (step->op == STEP_POLL)
        return !(step->value & ~step->mask) && step->timeout >= 0;
    return 1;
}

/* The first step that makes no sense; count where all do. */
static uint64_t pyvfio_first_wrong(const struct pyvfio_window *window,
                                   const struct pyvfio_step *steps, uint64_t count)
{
    uint64_t at = 0;

    while (at < count && makes_sense(window, &steps[at]))
        at++;
    return at;
}
