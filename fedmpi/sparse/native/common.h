/* What the scalar, AVX2 and AVX-512 kernels share.
 *
 * Every level gives the bits of kernels_portable.py: float32, clients in order, multiply and then add. The files must
 * therefore be compiled with -ffp-contract=off; the tests compare bits.
 *
 * Mask bits beyond entry n are zero (checked in module.c). A kernel returns -1 when masks and values do not agree in
 * number; it never reads or writes outside the arrays that it was given.
 */
#ifndef FEDMPI_COMMON_H
#define FEDMPI_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FEDMPI_X86 1
#include <immintrin.h>
#else
#define FEDMPI_X86 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define COUNT(x) ((size_t)__builtin_popcountll(x))
#define LOWEST(x) ((unsigned)__builtin_ctzll(x))
#else
static size_t COUNT(uint64_t x) {
    size_t n = 0;
    for (; x; x &= x - 1) n++;
    return n;
}
static unsigned LOWEST(uint64_t x) {
    unsigned n = 0;
    for (; !(x & 1); x >>= 1) n++;
    return n;
}
#endif

#define WORD 64 /* entries per mask word */
#define ALL_ONES (~(uint64_t)0)

/* Eight to eighteen streams are read side by side, more than hardware prefetchers follow: without a hint half a
 * kilobyte to two kilobytes ahead the merge is two to three times slower at densities from 0.3 on. */
#define AHEAD 512 /* entries */

/* A single stream is read two pages ahead: hardware prefetchers stop at the end of a page. A pack is a tenth to a
 * quarter faster for it, a masked copy that is written past the caches nearly twice as fast. */
#define FAR_AHEAD 2048 /* entries */

/* From this size on a masked copy is written past the caches, which would have to read every line before they write
 * it, and would lose what other ranks of the host are about to read. */
#define STREAMED (1 << 20) /* entries */

/* How many entries there are before the first one that is aligned to `bytes`; n if there is none. */
static inline size_t unaligned(const float *array, size_t n, size_t bytes) {
    const size_t beyond = (uintptr_t)array % bytes;
    const size_t before = beyond ? (bytes - beyond) / sizeof(float) : 0;
    return (uintptr_t)array % sizeof(float) || before > n ? n : before;
}

/* Mask bits of the entries WORD * word + shift ... of which there are 64. */
static inline uint64_t bits_from(const uint64_t *words, size_t word, size_t shift) {
    return shift ? words[word] >> shift | words[word + 1] << (WORD - shift) : words[word];
}

typedef struct {
    const float *next; /* the values not yet merged */
    size_t left;       /* how many they are */
    const uint64_t *words;
    float weight;
    int in_tail;
    float tail[2 * WORD]; /* the last values, so that vector loads stay inside memory of ours */
} Client;

typedef struct {
    const float *old;
    float *out;
    size_t n;
    Client *clients;
    size_t k;
    float total; /* sum of the weights in client order: the denominator when pruned entries count as 0 */
    int skip_pruned;
} Merge;

/* Make 64 values readable from client->next although fewer are left. */
static inline void move_to_tail(Client *client) {
    if (client->in_tail) return;
    memset(client->tail, 0, sizeof client->tail);
    memcpy(client->tail, client->next, client->left * sizeof(float));
    client->next = client->tail;
    client->in_tail = 1;
}

#endif
