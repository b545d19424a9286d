// SPDX-License-Identifier: BSD-3-Clause
/*
 * Note each instruction that touches some memory: its pages are protected, a fault is noted and lets
 * one instruction through, single-stepped, before they are protected again.
 *
 * What an instruction touches is told twice: its width is read from its code, and one that reaches
 * into the next page faults there again.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define TRAP_FLAG 0x100
#define WRITE_FAULT 2
#define MOST 256

struct touch {
    uintptr_t address;
    int width; /* bytes; 0 for an instruction that is no plain move */
    int is_write;
};

static uintptr_t start, end;
static struct touch touches[MOST];
static int count;

static int width_of(const uint8_t *code)
{
    int narrow = 0, wide = 0;

    while (*code == 0x66) {
        narrow = 1;
        code++;
    }
    if ((*code & 0xf0) == 0x40)
        wide = *code++ & 8;
    switch (*code) {
    case 0x88: case 0x8a: case 0xc6:
        return 1;
    case 0x89: case 0x8b: case 0xc7:
        return wide ? 8 : narrow ? 2 : 4;
    case 0x0f:
        return code[1] == 0xb6 ? 1 : code[1] == 0xb7 ? 2 : 0;
    }
    return 0;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    greg_t *registers = state->uc_mcontext.gregs;
    uintptr_t address = (uintptr_t)info->si_addr;

    if (address < start || address >= end) {
        signal(number, SIG_DFL);
        return;
    }
    if (count < MOST) {
        touches[count].address = address;
        touches[count].width = width_of((const uint8_t *)registers[REG_RIP]);
        touches[count].is_write = !!(registers[REG_ERR] & WRITE_FAULT);
    }
    count++;
    mprotect((void *)(address & ~0xfffUL), 0x1000, PROT_READ | PROT_WRITE);
    registers[REG_EFL] |= TRAP_FLAG;
}

static void on_step(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;

    (void)number;
    (void)info;
    mprotect((void *)start, end - start, PROT_NONE);
    state->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
}

void watch(uintptr_t address, size_t size)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = on_fault;
    sigaction(SIGSEGV, &action, NULL);
    action.sa_sigaction = on_step;
    sigaction(SIGTRAP, &action, NULL);
    start = address;
    end = address + size;
    count = 0;
    mprotect((void *)start, size, PROT_NONE);
}

/* Returns how many touches there were, of which the first 256 are in found. */
int unwatch(struct touch *found)
{
    mprotect((void *)start, end - start, PROT_READ | PROT_WRITE);
    memcpy(found, touches, sizeof(touches));
    return count;
}
