# SPDX-License-Identifier: BSD-3-Clause
#
# Firmware for the machine of pyvfio.emulator.machine: finds the functions of the bus, gives their
# BARs addresses, and drives the first edu device (1234:11e8).  What it saw is left in a block of
# memory, the report, for the host to read.  It ends with hlt, interrupts off; a step that waits for
# something that never happens is ended by the host's time limit, and the report says which it was.
#
#     as --32 -I . -o edu.o edu.s
#     ld -m elf_i386 -Ttext=0x10000 -e start --oformat=binary -o edu.bin edu.o
#
# GNU as.  The processor is in protected mode with flat segments, interrupts off, and esp is set.

        .intel_syntax noprefix
        .code32

        .include "layout.inc"

        .text
        .globl  start
start:
        cld
        lgdt    [gdt_pointer]
        jmp     0x08:in_own_segments
in_own_segments:
        mov     eax, 0x10
        mov     ds, ax
        mov     es, ax
        mov     ss, ax

        mov     edi, REPORT
        mov     ecx, REPORT_BYTES / 4
        xor     eax, eax
        rep stosd
        mov     dword ptr [R_MAGIC], 0x66767970
        mov     dword ptr [R_MAGIC + 4], 0x57466f69
        mov     dword ptr [R_VERSION], 1
        mov     dword ptr [R_EDU], -1

        call    scan_by_ports
        call    scan_by_window
        call    program_bars
        cmp     dword ptr [R_EDU], -1
        je      done
        call    set_up_interrupts
        call    enable_messages
        cmp     dword ptr [R_MSI], 0
        je      done
        call    compare_config
        call    identify
        call    liveness
        call    factorial_polled
        call    factorial_signalled
        call    messages
        call    dma
        call    pin
        call    move_bar
done:
        cli
        hlt
        jmp     done

        .include "bus.inc"
        .include "interrupts.inc"
        .include "steps.inc"

# Data

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff              # code, 4 GiB
        .quad   0x00cf92000000ffff              # data, 4 GiB
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   256 * 8 - 1
        .long   IDT
next_memory:
        .long   MEMORY_WINDOW
next_port:
        .long   PORT_WINDOW
