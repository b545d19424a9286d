// SPDX-License-Identifier: BSD-3-Clause
/* Count the instructions of an emulated processor, and stop it in front of one.
 *
 * Unicorn calls pyvfio_step() before each instruction (UC_HOOK_CODE).  A stop that is asked for
 * there is exact; one that is asked for in the callback of a device access would take the access
 * back and have the instruction make it again.
 */
#include <stdint.h>

struct pyvfio_steps {
    uint64_t done;
    uint64_t limit;   /* not one instruction more is begun */
    uintptr_t stop;   /* uc_emu_stop */
    uintptr_t read;   /* uc_reg_read */
    int flags;        /* the number of the register with flags */
    uint32_t awaited; /* flags of which one stops as well */
    int stopped;
};

static int pyvfio_step_awaited(void *cpu, const struct pyvfio_steps *steps)
{
    uint32_t flags = 0;

    if (!steps->awaited)
        return 0;
    ((int (*)(void *, int, void *))steps->read)(cpu, steps->flags, &flags);
    return flags & steps->awaited;
}

static void pyvfio_step(void *cpu, uint64_t address, uint32_t size, void *data)
{
    struct pyvfio_steps *steps = data;

    if (steps->done < steps->limit && !pyvfio_step_awaited(cpu, steps)) {
        steps->done++;
    } else {
        steps->stopped = 1;
        ((int (*)(void *))steps->stop)(cpu);
    }
}

static uintptr_t pyvfio_step_address(void)
{
    return (uintptr_t)pyvfio_step;
}
