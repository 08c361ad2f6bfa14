/* AVX-512: sixteen entries at a time, by the compress and expand instructions on registers.
 *
 * Two things that cost a factor of two on one processor or another, and nothing on the rest:
 * - compress to memory is microcoded on Zen 4: compress into a register and store it whole;
 * - the zeroing forms depend on the old destination register on Zen 5, which chains independent instructions: use the
 *   merging forms, with the operand itself as the lanes that are not written.
 */
#ifndef FEDMPI_AVX512_H
#define FEDMPI_AVX512_H

#include "scalar.h"

#if FEDMPI_X86

#define AVX512 __attribute__((target("avx512f,popcnt")))

typedef uint16_t __attribute__((may_alias)) Half;

/* Entries 16 part ... 16 part + 15 of a mask word. Compilers go through a general register, twice; this does not. */
AVX512 static inline __mmask16 mask_of(const uint64_t *word, int part) {
    __mmask16 mask;
    __asm__("kmovw %1, %0" : "=Yk"(mask) : "m"(((const Half *)word)[part]));
    return mask;
}

AVX512 static inline __m512 compressed(__mmask16 kept, const float *from) {
    const __m512 v = _mm512_loadu_ps(from);
    return _mm512_mask_compress_ps(v, kept, v);
}

/* Lanes that are not kept hold anything. */
AVX512 static inline __m512 expanded(__mmask16 kept, const float *from) {
    const __m512 v = _mm512_loadu_ps(from);
    return _mm512_mask_expand_ps(v, kept, v);
}

AVX512 static inline void fetch_avx512(const float *from) {
    for (int part = 0; part < 4; part++) _mm_prefetch((const char *)(from + 16 * part), _MM_HINT_T0);
}

/* Full stores may write up to 63 entries too many, as long as `out` has room; the scalar code does the rest. */
AVX512 static int pack_avx512(const float *dense, const uint64_t *words, size_t n, float *out, size_t count) {
    size_t word = 0, at = 0;
    for (; (word + 1) * WORD <= n && at + WORD <= count; word++) {
        const float *from = dense + word * WORD;
        const uint64_t bits = words[word];
        float *to = out + at;
        fetch_avx512(from + FAR_AHEAD);
        _mm512_storeu_ps(to, compressed(mask_of(words + word, 0), from));
        _mm512_storeu_ps(to + COUNT(bits & 0xFFFF), compressed(mask_of(words + word, 1), from + 16));
        _mm512_storeu_ps(to + COUNT(bits & 0xFFFFFFFF), compressed(mask_of(words + word, 2), from + 32));
        _mm512_storeu_ps(to + COUNT(bits & 0xFFFFFFFFFFFF), compressed(mask_of(words + word, 3), from + 48));
        at += COUNT(bits);
    }
    return pack_scalar(dense, words, n, out, count, word, at);
}

AVX512 static int expand_avx512(const float *values, size_t count, const uint64_t *words, float *out, size_t n) {
    size_t word = 0, at = 0;
    for (; (word + 1) * WORD <= n && at + WORD <= count; word++) {
        float *to = out + word * WORD;
        uint64_t bits = words[word];
        for (int part = 0; part < 4; part++, bits >>= 16) {
            const __mmask16 kept = mask_of(words + word, part);
            _mm512_storeu_ps(to + 16 * part, _mm512_maskz_mov_ps(kept, expanded(kept, values + at)));
            at += COUNT(bits & 0xFFFF);
        }
    }
    return expand_scalar(values, count, words, out, n, word, at);
}

/* `shift` entries at the beginning bring the stores of the rest to a border of 64 bytes. */
AVX512 static void masked_copy_avx512(const float *dense, const uint64_t *words, float *out, size_t n) {
    const int streamed = n >= STREAMED;
    const size_t shift = streamed ? unaligned(out, n, 64) : 0;
    size_t at = shift;
    masked_copy_scalar(dense, words, out, shift, 0);
    for (; at + WORD <= n; at += WORD) {
        const uint64_t bits = bits_from(words, at / WORD, shift);
        fetch_avx512(dense + at + FAR_AHEAD);
        __m512 v[4];
        for (int part = 0; part < 4; part++) v[part] = _mm512_loadu_ps(dense + at + 16 * part);
        for (int part = 0; part < 4; part++) {
            const __m512 kept = _mm512_maskz_mov_ps((__mmask16)(bits >> 16 * part), v[part]);
            float *to = out + at + 16 * part;
            if (streamed)
                _mm512_stream_ps(to, kept);
            else
                _mm512_storeu_ps(to, kept);
        }
    }
    if (streamed) _mm_sfence();
    masked_copy_scalar(dense, words, out, n, at);
}

typedef struct {
    __m512 numerator[4], denominator[4];
} Sums;

#define ADD_PART(part, offset)                                                                                        \
    do {                                                                                                              \
        const __mmask16 kept = mask_of(client->words + word, part);                                                   \
        const __m512 term = _mm512_mul_ps(weight, expanded(kept, values + (offset)));                                 \
        sums->numerator[part] = _mm512_mask_add_ps(sums->numerator[part], kept, sums->numerator[part], term);         \
        sums->denominator[part] = _mm512_mask_add_ps(sums->denominator[part], kept, sums->denominator[part], weight); \
        _mm_prefetch((const char *)(values + AHEAD + 16 * (part)), _MM_HINT_T0);                                      \
    } while (0)

AVX512 static inline __attribute__((always_inline)) int add_avx512(Client *client, size_t word, Sums *sums) {
    const uint64_t bits = client->words[word];
    const size_t count = COUNT(bits);
    const __m512 weight = _mm512_set1_ps(client->weight);
    if (client->left < WORD) {
        if (count > client->left) return -1;
        move_to_tail(client);
    }
    const float *values = client->next;
    ADD_PART(0, 0);
    ADD_PART(1, COUNT(bits & 0xFFFF));
    ADD_PART(2, COUNT(bits & 0xFFFFFFFF));
    ADD_PART(3, COUNT(bits & 0xFFFFFFFFFFFF));
    _mm_prefetch((const char *)(client->words + word + WORD), _MM_HINT_T0);
    client->next += count;
    client->left -= count;
    return 0;
}

/* Write the mean of 16 entries. `old` is read even where nothing of it stays: a branch on that is a coin toss. */
AVX512 static inline void finish_avx512(const Merge *job, size_t at, __mmask16 held, __m512 numerator,
                                        __m512 denominator) {
    if (!job->skip_pruned) {
        _mm512_storeu_ps(job->out + at, _mm512_div_ps(numerator, _mm512_set1_ps(job->total)));
        return;
    }
    const __mmask16 has_mean = _mm512_mask_cmp_ps_mask(held, denominator, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    const __m512 old = _mm512_loadu_ps(job->old + at);
    _mm512_storeu_ps(job->out + at, _mm512_mask_div_ps(old, has_mean, numerator, denominator));
}

/* Sums of 64 entries stay in registers over all clients. */
AVX512 static int merge_avx512(Merge *job) {
    size_t word = 0;
    for (; (word + 1) * WORD <= job->n; word++) {
        Sums sums;
        uint64_t held = 0;
        for (int part = 0; part < 4; part++) {
            sums.numerator[part] = sums.denominator[part] = _mm512_setzero_ps();
            _mm_prefetch((const char *)(job->old + word * WORD + 16 * part + AHEAD), _MM_HINT_T0);
        }
        for (size_t k = 0; k < job->k; k++) {
            held |= job->clients[k].words[word];
            if (add_avx512(&job->clients[k], word, &sums)) return -1;
        }
        for (int part = 0; part < 4; part++)
            finish_avx512(job, word * WORD + 16 * part, (__mmask16)(held >> 16 * part), sums.numerator[part],
                          sums.denominator[part]);
    }
    return merge_scalar(job, word);
}

#endif
#endif
