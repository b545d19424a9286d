# SPDX-License-Identifier: BSD-3-Clause
"""Builds ``pyvfio.native._native`` (cffi, API mode); named in setup.py."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

_NAMES = (
    "mmio.c",
    "window.c",
    "program.c",
    "ioctl.c",
    "eventfd.c",
    "steps.c",
    "messages.c",
    "claims.c",
    "channel.c",
    "registers.c",
    "serve.c",
    "dma.c",
)
SOURCES = [Path(__file__).with_name(name) for name in _NAMES]

ffibuilder = FFI()
ffibuilder.cdef(
    """
    uint8_t pyvfio_read8(uintptr_t address);
    uint16_t pyvfio_read16(uintptr_t address);
    uint32_t pyvfio_read32(uintptr_t address);
    uint64_t pyvfio_read64(uintptr_t address);
    int pyvfio_write8(uintptr_t address, uint8_t value);
    int pyvfio_write16(uintptr_t address, uint16_t value);
    int pyvfio_write32(uintptr_t address, uint32_t value);
    int pyvfio_write64(uintptr_t address, uint64_t value);
    int pyvfio_faulted(void);
    int pyvfio_copy_out(void *to, uintptr_t from, size_t size);
    int pyvfio_copy_in(uintptr_t to, const void *from, size_t size);
    int pyvfio_guard(void);
    void *pyvfio_map(int fd, uint64_t offset, size_t size, int readable, int writable);
    int pyvfio_unmap(void *address, size_t size);
    void pyvfio_read_barrier(void);
    void pyvfio_write_barrier(void);
    void pyvfio_full_barrier(void);

    struct pyvfio_area {
        uint64_t start;
        uint64_t end;
        uintptr_t address;
    };
    struct pyvfio_window {
        uint64_t size;
        int readable;
        int writable;
        struct pyvfio_stream *reads;
        struct pyvfio_stream *writes;
        struct pyvfio_stream *posts;
        const int *posting_is_over;
        uint32_t region;
        void *of_python;
        uint64_t count;
        struct pyvfio_area areas[];
    };
    struct pyvfio_loaded {
        uint64_t value;
        uint64_t failure;
    };
    uint64_t pyvfio_get8(const struct pyvfio_window *window, uint64_t offset);
    uint64_t pyvfio_get16(const struct pyvfio_window *window, uint64_t offset);
    uint64_t pyvfio_get32(const struct pyvfio_window *window, uint64_t offset);
    struct pyvfio_loaded pyvfio_get64(const struct pyvfio_window *window, uint64_t offset);
    struct pyvfio_loaded pyvfio_load64_halves(const struct pyvfio_window *window, uint64_t offset,
                                              int high_first);
    uint64_t pyvfio_put8(const struct pyvfio_window *window, uint64_t offset, uint8_t value);
    uint64_t pyvfio_put16(const struct pyvfio_window *window, uint64_t offset, uint16_t value);
    uint64_t pyvfio_put32(const struct pyvfio_window *window, uint64_t offset, uint32_t value);
    uint64_t pyvfio_put64(const struct pyvfio_window *window, uint64_t offset, uint64_t value);
    uint64_t pyvfio_store64_halves(const struct pyvfio_window *window, uint64_t offset,
                                   uint64_t value, int high_first);
    uint64_t pyvfio_load_block(const struct pyvfio_window *window, uint64_t offset, char *target,
                               uint64_t size, unsigned width);
    uint64_t pyvfio_store_block(const struct pyvfio_window *window, uint64_t offset,
                                const char *source, uint64_t size, unsigned width);

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
    struct pyvfio_run {
        uint64_t at;
        uint64_t started;
    };
    uint64_t pyvfio_first_wrong(const struct pyvfio_window *window,
                                const struct pyvfio_step *steps, uint64_t count);
    int pyvfio_run(const struct pyvfio_window *window, struct pyvfio_step *steps, uint64_t count,
                   struct pyvfio_run *run);

    int pyvfio_ioctl(int fd, unsigned long request, uintptr_t argument);
    int pyvfio_signal(int fd);
    uint64_t pyvfio_take(int fd, int64_t nanoseconds);
    struct pyvfio_steps {
        uint64_t done;
        uint64_t limit;
        uintptr_t stop;
        uintptr_t read;
        int flags;
        uint32_t awaited;
        int stopped;
    };
    uintptr_t pyvfio_step_address(void);
    struct pyvfio_rights {
        int lost;
        uint32_t count;
        int fds[...];
    };
    struct pyvfio_claims {
        uint32_t word;
        uint64_t exchanges;
        uint64_t posts;
    };
    static const int PYVFIO_C_SENDS, PYVFIO_C_READS;
    static const int PYVFIO_SENDS_BLOCKED, PYVFIO_READS_BLOCKED;
    uint32_t pyvfio_claims_set(struct pyvfio_claims *claims, uint32_t bits);
    uint32_t pyvfio_claims_clear(struct pyvfio_claims *claims, uint32_t bits);
    void pyvfio_count_post(struct pyvfio_claims *claims);
    struct pyvfio_stream {
        int fd;
        int may_spin;
        struct pyvfio_claims *claims;
        uint16_t id_base;
        uint16_t first_id;
        uint32_t claimed;
        int status;
        int error;
        uint64_t sent;
        uint64_t begun;
        uint32_t partial;
        uint64_t answered;
        uint32_t unread;
        uint64_t unread_data;
        struct pyvfio_rights rights;
        int spins;
        uint8_t received[4096];
        ...;
    };
    int pyvfio_left_by_me(const struct pyvfio_stream *stream);
    void pyvfio_leave(struct pyvfio_stream *stream);
    int pyvfio_read_region(struct pyvfio_stream *stream, uint32_t region, uint64_t offset,
                           uint32_t size, uintptr_t target);
    int pyvfio_post(struct pyvfio_stream *stream, uintptr_t messages, size_t size);
    int pyvfio_pipeline(struct pyvfio_stream *stream, uintptr_t requests, uintptr_t items,
                        size_t count, size_t window, uint64_t nanoseconds);

    struct pyvfio_header {
        uint16_t id;
        uint16_t command;
        uint32_t size;
        uint32_t flags;
        uint32_t error;
    };
    struct pyvfio_range {
        uint64_t offset;
        uint32_t region;
        uint32_t count;
    };
    struct pyvfio_write {
        struct pyvfio_range range;
        uint8_t data[8];
    };
    static const int PYVFIO_REGION_READ, PYVFIO_REGION_WRITE, PYVFIO_REGION_WRITE_MULTI;
    static const int PYVFIO_COMMAND, PYVFIO_REPLY, PYVFIO_NO_REPLY, PYVFIO_ERROR;
    static const int PYVFIO_DMA_MASTER, PYVFIO_DMA_READ, PYVFIO_DMA_WRITE;
    static const int PYVFIO_REQUEST_SIZE, PYVFIO_AT_LEAST, PYVFIO_MAX_FDS;
    enum pyvfio_status {
        PYVFIO_DONE, PYVFIO_UNSENT, PYVFIO_LATE, PYVFIO_OTHER, PYVFIO_ENDED, PYVFIO_FAILED,
        PYVFIO_BUSY, PYVFIO_CROWDED, PYVFIO_PAUSE, PYVFIO_READ, PYVFIO_WRITE, PYVFIO_POSTED, ...
    };

    struct pyvfio_backed {
        uint32_t region;
        uint64_t start;
        uint64_t end;
        uintptr_t memory;
    };
    struct pyvfio_service {
        int fd;
        volatile int hurried;
        int writable;
        uint32_t max_data;
        uint32_t areas;
        const struct pyvfio_backed *area;
        int queued;
        int rest;
        uint32_t start;
        uint32_t end;
        uint32_t fds_at;
        struct pyvfio_rights rights;
        struct pyvfio_range access;
        uint64_t value;
        uint32_t run;
        uint32_t posted;
        int error;
        uint32_t out_start;
        uint32_t out_end;
        uint64_t size;
        const uint8_t *data;
        uint8_t in[...];
        uint8_t out[...];
        ...;
    };
    int pyvfio_service_init(struct pyvfio_service *service);
    void pyvfio_sending_begin(struct pyvfio_service *service);
    void pyvfio_sending_end(struct pyvfio_service *service);
    int pyvfio_serve(struct pyvfio_service *service);
    int pyvfio_answer(struct pyvfio_service *service, int error, uint64_t value);
    int pyvfio_answer_and_serve(struct pyvfio_service *service, int error, uint64_t value);

    struct pyvfio_dma *pyvfio_dma_new(const uint8_t *command);
    void pyvfio_dma_free(struct pyvfio_dma *dma);
    int pyvfio_dma_insert(struct pyvfio_dma *dma, uint64_t first, uint64_t last, uintptr_t memory,
                          uint32_t flags);
    void pyvfio_dma_remove(struct pyvfio_dma *dma, uint64_t first, uint64_t last);
    void pyvfio_dma_stop(struct pyvfio_dma *dma, int stopped);
    void pyvfio_dma_log(struct pyvfio_dma *dma, int logged);
    int pyvfio_dma_read(struct pyvfio_dma *dma, uint64_t address, void *to, size_t size);
    int pyvfio_dma_write(struct pyvfio_dma *dma, uint64_t address, const void *from, size_t size);
    """
)
ffibuilder.set_source(
    "pyvfio.native._native",
    "\n".join(source.read_text(encoding="utf-8") for source in SOURCES),
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
