/* Plain C: any machine, and the ends of ranges for the vector levels. */
#ifndef FEDMPI_SCALAR_H
#define FEDMPI_SCALAR_H

#include "common.h"

static size_t count_scalar(const uint64_t *words, size_t n_words) {
    size_t total = 0;
    for (size_t i = 0; i < n_words; i++) total += COUNT(words[i]);
    return total;
}

/* Append `width` bits to a stream of words. `bits` has no bit set from `width` on. */
static inline void append_bits(uint64_t *out, size_t at, uint64_t bits, size_t width) {
    const size_t word = at / WORD, shift = at % WORD;
    out[word] |= bits << shift;
    if (shift + width > WORD) out[word + 1] |= bits >> (WORD - shift);
}

/* Read up to 64 bits of a stream of `n_words` words; bits beyond its end are zero. */
static inline uint64_t bits_at(const uint64_t *words, size_t n_words, size_t at) {
    const size_t word = at / WORD, shift = at % WORD;
    uint64_t bits = word < n_words ? words[word] >> shift : 0;
    if (shift && word + 1 < n_words) bits |= words[word + 1] << (WORD - shift);
    return bits;
}

static uint64_t gather_bits(uint64_t bits, uint64_t select) {
    uint64_t gathered = 0;
    for (unsigned rank = 0; select; select &= select - 1, rank++)
        gathered |= (bits >> LOWEST(select) & 1) << rank;
    return gathered;
}

static uint64_t scatter_bits(uint64_t bits, uint64_t select) {
    uint64_t scattered = 0;
    for (; select; select &= select - 1, bits >>= 1) scattered |= (bits & 1) << LOWEST(select);
    return scattered;
}

/* The bits of `words` at the ones of `select`, one after the other. `out` is zero and has room for all of them. */
static void extract_scalar(const uint64_t *words, const uint64_t *select, size_t n_words, uint64_t *out) {
    size_t at = 0;
    for (size_t i = 0; i < n_words; i++) {
        const size_t width = COUNT(select[i]);
        if (width) append_bits(out, at, gather_bits(words[i], select[i]), width);
        at += width;
    }
}

/* The reverse: successive bits of `packed` go to the ones of `select`. */
static void deposit_scalar(const uint64_t *packed, size_t n_packed, const uint64_t *select, size_t n_words,
                           uint64_t *out) {
    size_t at = 0;
    for (size_t i = 0; i < n_words; i++) {
        out[i] = scatter_bits(bits_at(packed, n_packed, at), select[i]);
        at += COUNT(select[i]);
    }
}

/* Pack words first, first + 1, ... to out + at. */
static int pack_scalar(const float *dense, const uint64_t *words, size_t n, float *out, size_t count, size_t first,
                       size_t at) {
    for (size_t word = first; word * WORD < n; word++) {
        const float *from = dense + word * WORD;
        uint64_t bits = words[word];
        if (COUNT(bits) > count - at) return -1;
        if (bits == ALL_ONES) {
            memcpy(out + at, from, WORD * sizeof(float));
            at += WORD;
            continue;
        }
        for (; bits; bits &= bits - 1) out[at++] = from[LOWEST(bits)];
    }
    return at == count ? 0 : -1;
}

static int expand_scalar(const float *values, size_t count, const uint64_t *words, float *out, size_t n, size_t first,
                         size_t at) {
    for (size_t word = first; word * WORD < n; word++) {
        float *to = out + word * WORD;
        size_t width = n - word * WORD < WORD ? n - word * WORD : WORD;
        uint64_t bits = words[word];
        if (COUNT(bits) > count - at) return -1;
        if (bits == ALL_ONES) {
            memcpy(to, values + at, WORD * sizeof(float));
            at += WORD;
            continue;
        }
        memset(to, 0, width * sizeof(float));
        for (; bits; bits &= bits - 1) to[LOWEST(bits)] = values[at++];
    }
    return at == count ? 0 : -1;
}

/* The entries first, first + 1, ... of `dense` where they are kept, +0 elsewhere. Bits, not numbers: a NaN stays what it
 * is. `out` may be `dense`. */
static void masked_copy_scalar(const float *dense, const uint64_t *words, float *out, size_t n, size_t first) {
    for (size_t i = first; i < n; i++) {
        uint32_t entry;
        memcpy(&entry, dense + i, sizeof entry);
        entry &= -(uint32_t)(words[i / WORD] >> i % WORD & 1);
        memcpy(out + i, &entry, sizeof entry);
    }
}

static int add_scalar(Client *client, size_t word, float *numerator, float *denominator) {
    uint64_t bits = client->words[word];
    const size_t count = COUNT(bits);
    const float weight = client->weight, *values = client->next;
    if (count > client->left) return -1;
    client->next += count;
    client->left -= count;
    if (bits == ALL_ONES) {
        for (int i = 0; i < WORD; i++) {
            float term = weight * values[i];
            numerator[i] += term;
            denominator[i] += weight;
        }
        return 0;
    }
    for (; bits; bits &= bits - 1) {
        unsigned i = LOWEST(bits);
        float term = weight * *values++;
        numerator[i] += term;
        denominator[i] += weight;
    }
    return 0;
}

/* Merge words first, first + 1, ... */
static int merge_scalar(Merge *job, size_t first) {
    float numerator[WORD], denominator[WORD];
    for (size_t word = first; word * WORD < job->n; word++) {
        size_t lo = word * WORD, width = job->n - lo < WORD ? job->n - lo : WORD;
        uint64_t held = 0;
        memset(numerator, 0, sizeof numerator);
        memset(denominator, 0, sizeof denominator);
        for (size_t k = 0; k < job->k; k++) {
            held |= job->clients[k].words[word];
            if (add_scalar(&job->clients[k], word, numerator, denominator)) return -1;
        }
        for (size_t i = 0; i < width; i++) {
            if (!job->skip_pruned)
                job->out[lo + i] = numerator[i] / job->total;
            else if ((held >> i & 1) && denominator[i] != 0.0f)
                job->out[lo + i] = numerator[i] / denominator[i];
            else
                job->out[lo + i] = job->old[lo + i];
        }
    }
    return 0;
}

#endif
