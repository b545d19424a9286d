# SPDX-License-Identifier: BSD-3-Clause
#
# Firmware for the machine of pyvfio.emulator.machine: finds the functions of the bus, gives their
# BARs addresses, and drives the first edu device (1234:11e8).  What it saw is left in a block of
# memory, the report, for the host to read.  It ends with hlt, interrupts off; a step that waits for
# something that never happens is ended by the host's time limit, and the report says which it was.
#
#     as --32 -o edu.o edu.s
#     ld -m elf_i386 -Ttext=0x10000 -e start --oformat=binary -o edu.bin edu.o
#
# GNU as.  The processor is in protected mode with flat segments, interrupts off, and esp is set.

        .intel_syntax noprefix
        .code32

# The machine

        .equ    CONFIG_ADDRESS, 0xcf8
        .equ    CONFIG_DATA, 0xcfc
        .equ    ECAM, 0xb0000000                # where this firmware puts the window
        .equ    EOI, 0xfee000b0
        .equ    MESSAGE_ADDRESS, 0xfee00000
        .equ    MESSAGE_VECTOR, 0x51
        .equ    PIN_VECTOR, 0x40                # of INTA; INTB to INTD follow
        .equ    MEMORY_WINDOW, 0xc0000000       # BARs get addresses from here on
        .equ    PORT_WINDOW, 0xc000

# PCI

        .equ    COMMAND, 0x04
        .equ    CLASS, 0x08
        .equ    HEADER_TYPE, 0x0e
        .equ    BAR0, 0x10
        .equ    CAPABILITIES, 0x34
        .equ    INTERRUPT_PIN, 0x3d
        .equ    PCIEXBAR, 0x60                  # of the host bridge
        .equ    CAP_MSI, 0x05
        .equ    COMMAND_IO, 1
        .equ    COMMAND_MEMORY, 2
        .equ    COMMAND_MASTER, 4

# The edu device

        .equ    EDU, 0x11e81234
        .equ    ID, 0x00
        .equ    LIVENESS, 0x04
        .equ    FACTORIAL, 0x08
        .equ    STATUS, 0x20
        .equ    IRQ_STATUS, 0x24
        .equ    IRQ_RAISE, 0x60
        .equ    IRQ_ACK, 0x64
        .equ    DMA_SOURCE, 0x80
        .equ    DMA_DESTINATION, 0x88
        .equ    DMA_COUNT, 0x90
        .equ    DMA_COMMAND, 0x98
        .equ    DMA_BUFFER, 0x40000             # of the device, as it addresses it
        .equ    COMPUTING, 0x01
        .equ    FACTORIAL_IRQ, 0x80
        .equ    DMA_TO_DEVICE, 0x5              # run, interrupt at the end
        .equ    DMA_TO_RAM, 0x7

# Memory

        .equ    IDT, 0x28000
        .equ    SOURCE, 0x30000
        .equ    DESTINATION, 0x31000
        .equ    DMA_BYTES, 2048

# The report: 32-bit words, but for the copies of configuration space

        .equ    REPORT, 0x20000
        .equ    R_MAGIC, REPORT + 0x00          # "pyvfioFW"
        .equ    R_VERSION, REPORT + 0x08
        .equ    R_BEGUN, REPORT + 0x0c          # bits of the steps below
        .equ    R_RIGHT, REPORT + 0x10          # those that saw what they should
        .equ    R_FUNCTIONS, REPORT + 0x14      # how many the ports found
        .equ    R_WINDOW_FUNCTIONS, REPORT + 0x18
        .equ    R_EDU, REPORT + 0x1c            # slot << 3 | function
        .equ    R_BAR, REPORT + 0x20            # address of BAR 0
        .equ    R_MSI, REPORT + 0x24            # offset of the capability
        .equ    R_ID, REPORT + 0x28
        .equ    R_LIVENESS, REPORT + 0x2c       # what it answered to LIVENESS_VALUE
        .equ    R_POLLED, REPORT + 0x30         # 10!
        .equ    R_SIGNALLED, REPORT + 0x34      # 12!
        .equ    R_DIFFERENT, REPORT + 0x38      # bytes that did not come back
        .equ    R_PIN, REPORT + 0x3c            # 1 to 4 for INTA to INTD
        .equ    R_MESSAGES, REPORT + 0x40       # interrupts by message
        .equ    R_PINS, REPORT + 0x44           # interrupts by pin, with a cause
        .equ    R_SPURIOUS, REPORT + 0x48       # interrupts without a cause
        .equ    R_CAUSES, REPORT + 0x4c         # all causes that were seen
        .equ    R_MOVED, REPORT + 0x50          # address of BAR 0 in the end
        .equ    R_LEFT, REPORT + 0x54           # what is read at the one before
        .equ    R_CONFIG_DIFFERENT, REPORT + 0x58
        .equ    R_TABLE, REPORT + 0x100         # functions: slot << 3 | function, ids, class, ids
        .equ    TABLE_ENTRIES, 15               # by the window
        .equ    R_BARS, REPORT + 0x200          # of edu: read back, size, address, 0
        .equ    R_CONFIG, REPORT + 0x400        # 256 bytes by ports
        .equ    R_WINDOW_CONFIG, REPORT + 0x500 # 256 bytes by the window
        .equ    REPORT_BYTES, 0x600

        .equ    STEP_SCAN, 0
        .equ    STEP_WINDOW, 1
        .equ    STEP_BARS, 2
        .equ    STEP_CONFIG, 3
        .equ    STEP_ID, 4
        .equ    STEP_LIVENESS, 5
        .equ    STEP_POLLED, 6
        .equ    STEP_SIGNALLED, 7
        .equ    STEP_MESSAGES, 8
        .equ    STEP_DMA, 9
        .equ    STEP_PIN, 10
        .equ    STEP_MOVE, 11

        .equ    LIVENESS_VALUE, 0x12345678
        .equ    RAISED, 20                      # messages that are asked for one after the other
        .equ    RAISED_CAUSE, 0x40
        .equ    PIN_CAUSE, 0x10

        .macro  BEGIN step
        bts     dword ptr [R_BEGUN], \step
        .endm

        .macro  RIGHT step
        bts     dword ptr [R_RIGHT], \step
        .endm

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

# Configuration space by ports.  esi is the function, slot << 3 | number.

# eax = the 32-bit register eax
config_read:
        push    edx
        call    select
        mov     edx, CONFIG_DATA
        in      eax, dx
        pop     edx
        ret

# the 32-bit register eax = ecx
config_write:
        push    edx
        call    select
        mov     edx, CONFIG_DATA
        mov     eax, ecx
        out     dx, eax
        pop     edx
        ret

# al = the 8-bit register eax
config_read8:
        push    edx
        call    select_byte
        in      al, dx
        pop     edx
        ret

# ax = the 16-bit register eax
config_read16:
        push    edx
        call    select_byte
        in      ax, dx
        pop     edx
        ret

# the 16-bit register eax = cx
config_write16:
        push    edx
        call    select_byte
        mov     eax, ecx
        out     dx, ax
        pop     edx
        ret

# Choose the register eax of esi
select:
        push    ecx
        mov     ecx, esi
        shl     ecx, 8
        lea     eax, [eax + ecx + 0x80000000]
        and     al, 0xfc
        mov     edx, CONFIG_ADDRESS
        out     dx, eax
        pop     ecx
        ret

# Choose the register that holds byte eax; dx = the port of that byte
select_byte:
        push    eax
        call    select
        pop     edx
        and     edx, 3
        add     edx, CONFIG_DATA
        ret

# The functions of bus 0, by ports

scan_by_ports:
        BEGIN   STEP_SCAN
        xor     esi, esi
        mov     edi, offset R_TABLE
1:
        xor     eax, eax
        call    config_read
        cmp     ax, 0xffff
        je      3f
        inc     dword ptr [R_FUNCTIONS]
        cmp     dword ptr [R_FUNCTIONS], TABLE_ENTRIES
        ja      2f
        mov     [edi], esi
        mov     [edi + 4], eax
        cmp     eax, EDU
        jne     4f
        cmp     dword ptr [R_EDU], -1
        jne     4f
        mov     [R_EDU], esi
4:
        mov     eax, CLASS
        call    config_read
        mov     [edi + 8], eax
        add     edi, 16
2:
        test    esi, 7
        jnz     5f
        mov     eax, HEADER_TYPE
        call    config_read8
        test    al, 0x80
        jnz     5f
3:
        test    esi, 7
        jnz     5f
        or      esi, 7                          # nothing else is in the slot
5:
        inc     esi
        cmp     esi, 256
        jb      1b
        cmp     dword ptr [R_EDU], -1
        je      6f
        RIGHT   STEP_SCAN
6:
        ret

# The same functions by the window, which the host bridge has to be told of first

scan_by_window:
        BEGIN   STEP_WINDOW
        xor     esi, esi
        mov     eax, PCIEXBAR + 4
        xor     ecx, ecx
        call    config_write
        mov     eax, PCIEXBAR
        mov     ecx, ECAM + 1
        call    config_write

        xor     edx, edx                        # function
        xor     ebx, ebx                        # entries that differ
        mov     edi, offset R_TABLE
1:
        mov     eax, edx
        shl     eax, 12
        mov     ecx, [ECAM + eax]
        cmp     cx, 0xffff
        je      3f
        inc     dword ptr [R_WINDOW_FUNCTIONS]
        cmp     dword ptr [R_WINDOW_FUNCTIONS], TABLE_ENTRIES
        ja      2f
        mov     [edi + 12], ecx
        cmp     [edi + 4], ecx
        setne   cl
        movzx   ecx, cl
        add     ebx, ecx
        mov     ecx, [ECAM + eax + CLASS]
        cmp     [edi + 8], ecx
        setne   cl
        movzx   ecx, cl
        add     ebx, ecx
        add     edi, 16
2:
        test    edx, 7
        jnz     4f
        test    byte ptr [ECAM + eax + HEADER_TYPE], 0x80
        jnz     4f
3:
        test    edx, 7
        jnz     4f
        or      edx, 7                          # nothing else is in the slot
4:
        inc     edx
        cmp     edx, 256
        jb      1b

        mov     eax, [R_WINDOW_FUNCTIONS]
        cmp     eax, [R_FUNCTIONS]
        jne     5f
        test    ebx, ebx
        jnz     5f
        RIGHT   STEP_WINDOW
5:
        ret

# Addresses for the BARs of every function but the host bridge

program_bars:
        BEGIN   STEP_BARS
        mov     edi, offset R_TABLE + 16
1:
        cmp     dword ptr [edi + 4], 0
        je      2f
        mov     esi, [edi]
        push    edi
        call    program_function
        pop     edi
        add     edi, 16
        cmp     edi, offset R_TABLE + 16 * TABLE_ENTRIES
        jb      1b
2:
        mov     eax, [R_BARS + 8]
        mov     [R_BAR], eax
        mov     [R_MOVED], eax
        test    eax, eax
        jz      3f
        cmp     dword ptr [R_BARS + 4], 0x100000
        jne     3f
        RIGHT   STEP_BARS
3:
        ret

# All BARs of esi, with decoding off while their sizes are found out
program_function:
        mov     eax, HEADER_TYPE
        call    config_read8
        test    al, 0x7f
        jnz     9f                              # a bridge
        mov     eax, COMMAND
        xor     ecx, ecx
        call    config_write16
        mov     edi, BAR0
1:
        mov     eax, edi
        mov     ecx, -1
        call    config_write
        mov     eax, edi
        call    config_read
        mov     ebp, eax                        # what was read back
        test    eax, eax
        jz      7f
        test    eax, 1
        jnz     3f
        and     eax, 0xfffffff0
        jz      6f                              # larger than all there is
        mov     edx, offset next_memory
        jmp     4f
3:
        or      eax, 0xffff0000
        and     eax, 0xfffffffc
        mov     edx, offset next_port
4:
        neg     eax                             # the size
        mov     ebx, eax
        dec     eax
        add     eax, [edx]
        mov     ecx, ebx
        neg     ecx
        and     ecx, eax                        # the next multiple of it
        lea     eax, [ecx + ebx]
        mov     [edx], eax
        cmp     esi, [R_EDU]
        jne     5f
        lea     eax, [R_BARS + edi * 4 - BAR0 * 4]
        mov     [eax], ebp
        mov     [eax + 4], ebx
        mov     [eax + 8], ecx
5:
        mov     eax, edi
        call    config_write
6:
        and     ebp, 7
        cmp     ebp, 4
        jne     7f
        add     edi, 4                          # the upper half of a 64-bit BAR
        mov     eax, edi
        xor     ecx, ecx
        call    config_write
7:
        add     edi, 4
        cmp     edi, BAR0 + 24
        jb      1b
        mov     eax, COMMAND
        mov     ecx, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER
        call    config_write16
9:
        ret

# Interrupts

set_up_interrupts:
        mov     edi, IDT
        mov     ecx, 256 * 2
        xor     eax, eax
        rep stosd
        mov     eax, offset message_handler
        mov     edi, IDT + MESSAGE_VECTOR * 8
        call    set_gate
        mov     eax, offset pin_handler
        mov     edi, IDT + PIN_VECTOR * 8
        mov     ecx, 4
1:
        call    set_gate
        add     edi, 8
        loop    1b
        lidt    [idt_pointer]
        ret

# An interrupt gate at edi to eax
set_gate:
        mov     [edi], ax
        mov     word ptr [edi + 2], 0x08
        mov     word ptr [edi + 4], 0x8e00
        push    eax
        shr     eax, 16
        mov     [edi + 6], ax
        pop     eax
        ret

message_handler:
        pushad
        mov     edx, offset R_MESSAGES
        jmp     serve
pin_handler:
        pushad
        mov     edx, offset R_PINS
serve:
        mov     ebx, [R_MOVED]
        mov     eax, [ebx + IRQ_STATUS]
        test    eax, eax
        jnz     1f
        mov     edx, offset R_SPURIOUS          # a level that was gone before it could be served
1:
        inc     dword ptr [edx]
        or      [R_CAUSES], eax
        mov     [ebx + IRQ_ACK], eax
        mov     dword ptr [EOI], 0
        popad
        iret

# Wait until the counter at edx is eax; interrupts are off before and after
wait_for:
        cmp     [edx], eax
        jae     1f
        sti
        hlt
        cli
        jmp     wait_for
1:
        ret

# Find MSI, and have it send MESSAGE_VECTOR
enable_messages:
        mov     esi, [R_EDU]
        mov     eax, CAPABILITIES
        call    config_read8
1:
        movzx   edi, al
        and     edi, 0xfc
        jz      2f
        mov     eax, edi
        call    config_read16
        cmp     al, CAP_MSI
        movzx   eax, ah
        jne     1b
        mov     [R_MSI], edi
        lea     eax, [edi + 4]
        mov     ecx, MESSAGE_ADDRESS
        call    config_write
        lea     eax, [edi + 2]
        call    config_read16
        mov     ebx, eax                        # control
        lea     ebp, [edi + 8]
        test    bl, 0x80                        # the address has 64 bits
        jz      3f
        mov     eax, ebp
        xor     ecx, ecx
        call    config_write
        add     ebp, 4
3:
        mov     eax, ebp
        mov     ecx, MESSAGE_VECTOR
        call    config_write16
        mov     ecx, ebx
        and     ecx, 0xff8f                     # one message
        or      ecx, 1
        lea     eax, [edi + 2]
        call    config_write16
2:
        ret

disable_messages:
        mov     esi, [R_EDU]
        mov     eax, [R_MSI]
        add     eax, 2
        call    config_read16
        mov     ecx, eax
        and     ecx, 0xfffe
        mov     eax, [R_MSI]
        add     eax, 2
        jmp     config_write16

# Configuration space of edu, both ways

compare_config:
        BEGIN   STEP_CONFIG
        mov     esi, [R_EDU]
        mov     ebp, esi
        shl     ebp, 12
        xor     edi, edi
1:
        mov     eax, edi
        call    config_read
        mov     [R_CONFIG + edi], eax
        mov     ecx, [ECAM + ebp + edi]
        mov     [R_WINDOW_CONFIG + edi], ecx
        cmp     eax, ecx
        je      2f
        inc     dword ptr [R_CONFIG_DIFFERENT]
2:
        add     edi, 4
        cmp     edi, 256
        jb      1b
        cmp     dword ptr [R_CONFIG_DIFFERENT], 0
        jne     3f
        RIGHT   STEP_CONFIG
3:
        ret

# Registers

identify:
        BEGIN   STEP_ID
        mov     ebx, [R_BAR]
        mov     eax, [ebx + ID]
        mov     [R_ID], eax
        cmp     al, 0xed
        jne     1f
        RIGHT   STEP_ID
1:
        ret

liveness:
        BEGIN   STEP_LIVENESS
        mov     ebx, [R_BAR]
        mov     dword ptr [ebx + LIVENESS], LIVENESS_VALUE
        mov     eax, [ebx + LIVENESS]
        mov     [R_LIVENESS], eax
        cmp     eax, ~LIVENESS_VALUE
        jne     1f
        RIGHT   STEP_LIVENESS
1:
        ret

factorial_polled:
        BEGIN   STEP_POLLED
        mov     ebx, [R_BAR]
        mov     dword ptr [ebx + STATUS], 0
        mov     dword ptr [ebx + FACTORIAL], 10
1:
        mov     eax, [ebx + STATUS]
        cmp     eax, -1
        je      2f                              # the device is gone
        test    eax, COMPUTING
        jnz     1b
        mov     eax, [ebx + FACTORIAL]
        mov     [R_POLLED], eax
        cmp     eax, 3628800
        jne     2f
        cmp     dword ptr [R_MESSAGES], 0
        jne     2f
        RIGHT   STEP_POLLED
2:
        ret

factorial_signalled:
        BEGIN   STEP_SIGNALLED
        mov     ebx, [R_BAR]
        mov     dword ptr [ebx + STATUS], FACTORIAL_IRQ
        mov     dword ptr [ebx + FACTORIAL], 12
        mov     edx, offset R_MESSAGES
        mov     eax, 1
        call    wait_for
        mov     dword ptr [ebx + STATUS], 0
        mov     eax, [ebx + FACTORIAL]
        mov     [R_SIGNALLED], eax
        cmp     eax, 479001600
        jne     1f
        cmp     dword ptr [R_MESSAGES], 1
        jne     1f
        RIGHT   STEP_SIGNALLED
1:
        ret

messages:
        BEGIN   STEP_MESSAGES
        mov     ebx, [R_BAR]
        mov     edx, offset R_MESSAGES
        mov     ecx, RAISED
1:
        mov     eax, [R_MESSAGES]
        inc     eax
        mov     dword ptr [ebx + IRQ_RAISE], RAISED_CAUSE
        call    wait_for
        loop    1b
        cmp     dword ptr [R_MESSAGES], 1 + RAISED
        jne     2f
        RIGHT   STEP_MESSAGES
2:
        ret

# DMA out of RAM into the device and back to elsewhere, each end a message

dma:
        BEGIN   STEP_DMA
        mov     edi, SOURCE
        mov     ecx, DMA_BYTES / 4
        mov     eax, 0x2545f491
1:
        stosd
        imul    eax, eax, 1664525
        add     eax, 1013904223
        loop    1b
        mov     edi, DESTINATION
        mov     ecx, DMA_BYTES / 4
        xor     eax, eax
        rep stosd

        mov     ebx, [R_BAR]
        mov     ecx, SOURCE
        mov     ebp, DMA_BUFFER
        mov     edi, DMA_TO_DEVICE
        call    transfer
        mov     ecx, DMA_BUFFER
        mov     ebp, DESTINATION
        mov     edi, DMA_TO_RAM
        call    transfer

        mov     ecx, DMA_BYTES
        mov     esi, SOURCE
        mov     edi, DESTINATION
2:
        cmpsb
        je      3f
        inc     dword ptr [R_DIFFERENT]
3:
        loop    2b
        cmp     dword ptr [R_DIFFERENT], 0
        jne     4f
        cmp     dword ptr [R_MESSAGES], 1 + RAISED + 2
        jne     4f
        RIGHT   STEP_DMA
4:
        ret

# DMA from ecx to ebp by the command edi
transfer:
        mov     [ebx + DMA_SOURCE], ecx
        mov     [ebx + DMA_DESTINATION], ebp
        mov     dword ptr [ebx + DMA_COUNT], DMA_BYTES
        mov     edx, offset R_MESSAGES
        mov     eax, [edx]
        inc     eax
        mov     [ebx + DMA_COMMAND], edi
        call    wait_for
1:
        mov     eax, [ebx + DMA_COMMAND]
        cmp     eax, -1
        je      2f                              # the device is gone
        test    eax, 1
        jnz     1b
2:
        ret

# The pin, with messages off.  It may be found without a cause once more: a level that is lowered
# while it is on its way.

pin:
        BEGIN   STEP_PIN
        call    disable_messages
        mov     eax, INTERRUPT_PIN
        call    config_read8
        movzx   eax, al
        mov     [R_PIN], eax
        mov     ebx, [R_BAR]
        mov     dword ptr [ebx + IRQ_RAISE], PIN_CAUSE
        mov     edx, offset R_PINS
        mov     eax, 1
        call    wait_for
        sti
        mov     ecx, 50
2:
        mov     eax, [ebx + IRQ_STATUS]
        loop    2b
        cli
        cmp     dword ptr [R_PINS], 1
        jne     1f
        test    dword ptr [R_CAUSES], PIN_CAUSE
        jz      1f
        test    eax, eax
        jnz     1f
        RIGHT   STEP_PIN
1:
        ret

# BAR 0 goes elsewhere while it is in use

move_bar:
        BEGIN   STEP_MOVE
        mov     esi, [R_EDU]
        mov     ebp, [R_BAR]
        mov     ecx, [next_memory]
        add     ecx, 0xfffff
        and     ecx, 0xfff00000
        mov     eax, BAR0
        call    config_write
        mov     [R_MOVED], ecx
        mov     eax, [ebp + ID]
        mov     [R_LEFT], eax
        mov     edx, [ecx + ID]
        cmp     edx, [R_ID]
        jne     1f
        cmp     eax, -1
        jne     1f
        mov     dword ptr [ecx + LIVENESS], ~LIVENESS_VALUE
        cmp     dword ptr [ecx + LIVENESS], LIVENESS_VALUE
        jne     1f
        RIGHT   STEP_MOVE
1:
        ret

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
