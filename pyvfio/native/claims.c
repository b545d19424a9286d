// SPDX-License-Identifier: BSD-3-Clause
/*
 * Who has a socket: calls of C that take it for one exchange, or the channel in Python, which can
 * have it for longer.
 *
 * A call takes each direction only where the channel has not blocked it, so it needs no lock of the
 * channel's.  The channel blocks a direction before anything is so that a call could not use it:
 * something queued, unanswered, half read, or a reader of its own.  Where a call has the direction
 * then, it ends what it does, and says that somebody waits for it.
 */

#define PYVFIO_C_SENDS 1u
#define PYVFIO_C_READS 2u
#define PYVFIO_SENDS_BLOCKED 4u
#define PYVFIO_READS_BLOCKED 8u

struct pyvfio_claims {
    uint32_t word;
    /* How often both directions were claimed */
    uint64_t exchanges;
    /* How often messages were sent that are not answered, or about to be */
    uint64_t posts;
};

static void pyvfio_count_post(struct pyvfio_claims *claims)
{
    __atomic_fetch_add(&claims->posts, 1, __ATOMIC_SEQ_CST);
}

/* Both return what there was before. */
static uint32_t pyvfio_claims_set(struct pyvfio_claims *claims, uint32_t bits)
{
    return __atomic_fetch_or(&claims->word, bits, __ATOMIC_SEQ_CST);
}

static uint32_t pyvfio_claims_clear(struct pyvfio_claims *claims, uint32_t bits)
{
    return __atomic_fetch_and(&claims->word, ~bits, __ATOMIC_SEQ_CST);
}

/* Take both directions; they are free, or it fails. */
static int pyvfio_claim_socket(struct pyvfio_claims *claims)
{
    uint32_t before = 0;

    if (!__atomic_compare_exchange_n(&claims->word, &before, PYVFIO_C_SENDS | PYVFIO_C_READS, 0,
                                     __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        return 0;
    claims->exchanges++;
    return 1;
}

/* Take the outgoing direction, whoever reads. */
static int pyvfio_claim_sending(struct pyvfio_claims *claims)
{
    uint32_t before = __atomic_load_n(&claims->word, __ATOMIC_RELAXED);

    do {
        if (before & (PYVFIO_C_SENDS | PYVFIO_SENDS_BLOCKED))
            return 0;
    } while (!__atomic_compare_exchange_n(&claims->word, &before, before | PYVFIO_C_SENDS, 0,
                                          __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return 1;
}
