/* AVX2: eight entries at a time, moved by a permutation that is looked up by their mask byte. */
#ifndef FEDMPI_AVX2_H
#define FEDMPI_AVX2_H

#include "scalar.h"

#if FEDMPI_X86

#define AVX2 __attribute__((target("avx2,bmi2,popcnt")))
#define UNUSED_LANE INT32_MIN /* the permutation ignores the sign bit, which marks the lanes that are not kept */

static int32_t expand_lanes[256][8] __attribute__((aligned(32)));
static int32_t compress_lanes[256][8] __attribute__((aligned(32)));

static void fill_lanes(void) {
    for (int mask = 0; mask < 256; mask++) {
        int rank = 0;
        for (int lane = 0; lane < 8; lane++) expand_lanes[mask][lane] = UNUSED_LANE;
        for (int lane = 0; lane < 8; lane++) {
            if (!(mask >> lane & 1)) continue;
            expand_lanes[mask][lane] = rank;
            compress_lanes[mask][rank++] = lane;
        }
    }
}

/* The popcnt instruction; without the attribute the compiler may only emulate it. */
AVX2 static size_t count_avx2(const uint64_t *words, size_t n_words) {
    size_t total = 0;
    for (size_t i = 0; i < n_words; i++) total += COUNT(words[i]);
    return total;
}

AVX2 static void extract_avx2(const uint64_t *words, const uint64_t *select, size_t n_words, uint64_t *out) {
    size_t at = 0;
    for (size_t i = 0; i < n_words; i++) {
        const size_t width = COUNT(select[i]);
        if (width) append_bits(out, at, _pext_u64(words[i], select[i]), width);
        at += width;
    }
}

AVX2 static void deposit_avx2(const uint64_t *packed, size_t n_packed, const uint64_t *select, size_t n_words,
                              uint64_t *out) {
    size_t at = 0;
    for (size_t i = 0; i < n_words; i++) {
        out[i] = _pdep_u64(bits_at(packed, n_packed, at), select[i]);
        at += COUNT(select[i]);
    }
}

AVX2 static inline __m256 kept_lanes(__m256i lanes) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(-1)));
}

AVX2 static inline __m256i lanes_of(const int32_t table[256][8], unsigned byte) {
    return _mm256_load_si256((const __m256i *)table[byte]);
}

AVX2 static inline void fetch_avx2(const float *from) {
    for (int part = 0; part < 4; part++) _mm_prefetch((const char *)(from + 16 * part), _MM_HINT_T0);
}

/* Full stores may write up to 63 entries too many, as long as `out` has room; the scalar code does the rest. */
AVX2 static int pack_avx2(const float *dense, const uint64_t *words, size_t n, float *out, size_t count) {
    size_t word = 0, at = 0;
    for (; (word + 1) * WORD <= n && at + WORD <= count; word++) {
        const float *from = dense + word * WORD;
        uint64_t bits = words[word];
        fetch_avx2(from + FAR_AHEAD);
        for (int part = 0; part < 8; part++) {
            const unsigned byte = bits >> 8 * part & 255;
            const __m256 v = _mm256_loadu_ps(from + 8 * part);
            _mm256_storeu_ps(out + at, _mm256_permutevar8x32_ps(v, lanes_of(compress_lanes, byte)));
            at += COUNT(byte);
        }
    }
    return pack_scalar(dense, words, n, out, count, word, at);
}

AVX2 static int expand_avx2(const float *values, size_t count, const uint64_t *words, float *out, size_t n) {
    size_t word = 0, at = 0;
    for (; (word + 1) * WORD <= n && at + WORD <= count; word++) {
        float *to = out + word * WORD;
        uint64_t bits = words[word];
        for (int part = 0; part < 8; part++) {
            const unsigned byte = bits >> 8 * part & 255;
            const __m256i lanes = lanes_of(expand_lanes, byte);
            const __m256 v = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values + at), lanes);
            _mm256_storeu_ps(to + 8 * part, _mm256_and_ps(v, kept_lanes(lanes)));
            at += COUNT(byte);
        }
    }
    return expand_scalar(values, count, words, out, n, word, at);
}

/* `shift` entries at the beginning bring the stores of the rest to a border of 32 bytes. */
AVX2 static void masked_copy_avx2(const float *dense, const uint64_t *words, float *out, size_t n) {
    const int streamed = n >= STREAMED;
    const size_t shift = streamed ? unaligned(out, n, 32) : 0;
    size_t at = shift;
    masked_copy_scalar(dense, words, out, shift, 0);
    for (; at + WORD <= n; at += WORD) {
        const uint64_t bits = bits_from(words, at / WORD, shift);
        fetch_avx2(dense + at + FAR_AHEAD);
        for (int part = 0; part < 8; part++) {
            const __m256 kept = kept_lanes(lanes_of(expand_lanes, bits >> 8 * part & 255));
            const __m256 v = _mm256_and_ps(_mm256_loadu_ps(dense + at + 8 * part), kept);
            float *to = out + at + 8 * part;
            if (streamed)
                _mm256_stream_ps(to, v);
            else
                _mm256_storeu_ps(to, v);
        }
    }
    if (streamed) _mm_sfence();
    masked_copy_scalar(dense, words, out, n, at);
}

/* Write the mean of 8 entries. */
AVX2 static inline void finish_avx2(const Merge *job, size_t at, unsigned held, __m256 numerator, __m256 denominator) {
    if (!job->skip_pruned) {
        _mm256_storeu_ps(job->out + at, _mm256_div_ps(numerator, _mm256_set1_ps(job->total)));
        return;
    }
    const __m256 nonzero = _mm256_cmp_ps(denominator, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    const __m256 has_mean = _mm256_and_ps(kept_lanes(lanes_of(expand_lanes, held)), nonzero);
    const __m256 mean = _mm256_div_ps(numerator, denominator);
    _mm256_storeu_ps(job->out + at, _mm256_blendv_ps(_mm256_loadu_ps(job->old + at), mean, has_mean));
}

/* Entries that a client does not keep add weight * 0: the sums start at +0 and weights are not negative, so no bit
 * changes. Sums of 32 entries stay in registers over all clients. */
AVX2 static int merge_avx2(Merge *job) {
    size_t word = 0;
    for (; (word + 1) * WORD <= job->n; word++) {
        for (int part = 0; part < 4; part++)
            _mm_prefetch((const char *)(job->old + word * WORD + 16 * part + AHEAD), _MM_HINT_T0);
        for (int half = 0; half < 2; half++) {
            __m256 numerator[4], denominator[4];
            uint32_t held = 0;
            for (int part = 0; part < 4; part++) numerator[part] = denominator[part] = _mm256_setzero_ps();
            for (size_t k = 0; k < job->k; k++) {
                Client *client = &job->clients[k];
                const uint32_t bits = (uint32_t)(client->words[word] >> 32 * half);
                const size_t count = COUNT(bits);
                const __m256 weight = _mm256_set1_ps(client->weight);
                if (client->left < WORD) {
                    if (count > client->left) return -1;
                    move_to_tail(client);
                }
                const float *values = client->next;
                for (int part = 0; part < 4; part++) {
                    const __m256i lanes = lanes_of(expand_lanes, bits >> 8 * part & 255);
                    const __m256 kept = kept_lanes(lanes);
                    const float *from = values + COUNT(bits & ((1u << 8 * part) - 1));
                    const __m256 v = _mm256_and_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(from), lanes), kept);
                    numerator[part] = _mm256_add_ps(numerator[part], _mm256_mul_ps(weight, v));
                    denominator[part] = _mm256_add_ps(denominator[part], _mm256_and_ps(weight, kept));
                }
                held |= bits;
                client->next += count;
                client->left -= count;
                _mm_prefetch((const char *)(values + AHEAD), _MM_HINT_T0);
                _mm_prefetch((const char *)(values + AHEAD + 16), _MM_HINT_T0);
                _mm_prefetch((const char *)(client->words + word + WORD), _MM_HINT_T0);
            }
            for (int part = 0; part < 4; part++)
                finish_avx2(job, word * WORD + 32 * half + 8 * part, held >> 8 * part & 255, numerator[part],
                            denominator[part]);
        }
    }
    return merge_scalar(job, word);
}

#endif
#endif
