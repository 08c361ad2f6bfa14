/* Lossless coding of float32 values; docs/wire-format.md has the format, values_portable.py the same in NumPy.
 *
 * A record never exceeds 1 + 4 n bytes. The decoder believes nothing: it reads and writes only inside the arrays that it
 * was given.
 */
#ifndef FEDMPI_VALUES_H
#define FEDMPI_VALUES_H

#include "common.h"

enum { RECORD_RAW, RECORD_SELF, RECORD_DELTA, RECORD_SAME };
enum { VALUES_OK, BAD_MODE, BAD_LENGTH, BAD_WIDTH, BAD_QUOTIENT, BAD_PADDING, BAD_ESCAPE };
static const char *const VALUE_ERRORS[] = {"",
                                           "the mode is unknown or needs a reference",
                                           "it ends too early or too late",
                                           "a width is above 31",
                                           "a quotient is too long",
                                           "padding bits are set",
                                           "an escaped quotient is out of range"};

#define LONGEST 24      /* a quotient of so many zeros is an escape: 32 bits at the end of the record */
#define SELF_WIDTH 24   /* sign and mantissa; what is above is the exponent's distance from the top one */
#define CONTEXTS 256    /* exponents of the reference */
#define CLASSES 33      /* bit lengths of a residual */
#define MAX_WIDTH 31
#define SLACK 32 /* bytes that the encoder wants beyond the longest record, so that it tests for room rarely */

typedef struct {
    const uint32_t *values;    /* NULL when decoding */
    const uint32_t *reference; /* NULL: coded by themselves */
    size_t n;
    uint32_t top; /* without reference: the rotated value that has residual 0 */
    uint8_t width[CONTEXTS];
    uint64_t count[CONTEXTS];
} Coded;

/* Bits of a float as an integer that grows with its value, and back. */
static inline uint32_t ordered(uint32_t bits) { return bits ^ (bits >> 31 ? 0xFFFFFFFFu : 0x80000000u); }
static inline uint32_t unordered(uint32_t order) { return order ^ (order >> 31 ? 0x80000000u : 0xFFFFFFFFu); }

static inline unsigned bit_length(uint32_t x) {
#if defined(__GNUC__) || defined(__clang__)
    return x ? 32u - (unsigned)__builtin_clz(x) : 0;
#else
    unsigned n = 0;
    for (; x; x >>= 1) n++;
    return n;
#endif
}

static inline uint32_t residual_delta(uint32_t value, uint32_t reference) {
    uint32_t d = ordered(value) - ordered(reference);
    return d << 1 ^ (d >> 31 ? 0xFFFFFFFFu : 0);
}

static inline uint32_t value_delta(uint32_t residual, uint32_t reference) {
    uint32_t d = residual >> 1 ^ (residual & 1 ? 0xFFFFFFFFu : 0);
    return unordered(ordered(reference) + d);
}

static inline uint32_t residual_self(uint32_t value, uint32_t top) { return top - (value << 1 | value >> 31); }
static inline uint32_t value_self(uint32_t residual, uint32_t top) {
    uint32_t rotated = top - residual;
    return rotated >> 1 | rotated << 31;
}

static inline unsigned exponent(uint32_t bits) { return bits >> 23 & 255; }

/* Twice the bits beside its low ones that a residual with `above` bits over them takes: exact on average below 16. */
static uint64_t twice_extra(int above) {
    static const uint64_t cost[] = {0, 2, 5, 11, 23, 76};
    return above <= 0 ? 0 : above < 6 ? cost[above] : 2 * (LONGEST + 32);
}

static uint8_t best_width(const uint32_t *classes, uint64_t count) {
    uint64_t best = ~(uint64_t)0;
    uint8_t width = 0;
    for (int k = 0; k <= MAX_WIDTH; k++) {
        uint64_t cost = 2 * (uint64_t)k * count;
        for (int c = k + 1; c < CLASSES; c++) cost += classes[c] * twice_extra(c - k);
        if (cost < best) {
            best = cost;
            width = (uint8_t)k;
        }
    }
    return width;
}

/* Choose the widths for coding against the reference; 0 when all values equal it. `classes` is zeroed scratch. */
static int plan_delta(Coded *job, uint32_t *classes) {
    uint32_t any = 0;
    memset(job->count, 0, sizeof job->count);
    for (size_t i = 0; i < job->n; i++) {
        const uint32_t z = residual_delta(job->values[i], job->reference[i]);
        any |= z;
        classes[exponent(job->reference[i]) * CLASSES + bit_length(z)]++;
    }
    for (int e = 0; e < CONTEXTS; e++) {
        for (int c = 0; c < CLASSES; c++) job->count[e] += classes[e * CLASSES + c];
        if (job->count[e]) job->width[e] = best_width(classes + e * CLASSES, job->count[e]);
    }
    return any != 0;
}

/* Choose the top exponent: those below cost a zero each step, those above an escape. */
static void plan_self(Coded *job) {
    uint64_t held[CONTEXTS] = {0}, best = ~(uint64_t)0;
    unsigned top = 0;
    for (size_t i = 0; i < job->n; i++) held[exponent(job->values[i])]++;
    for (int t = 0; t < CONTEXTS; t++) {
        uint64_t cost = 0;
        for (int e = 0; e < CONTEXTS; e++)
            cost += held[e] * (uint64_t)(e > t || t - e >= LONGEST ? LONGEST + 32 : t - e);
        if (cost < best) {
            best = cost;
            top = (unsigned)t;
        }
    }
    memset(job->count, 0, sizeof job->count);
    job->count[0] = job->n;
    job->width[0] = SELF_WIDTH;
    job->reference = NULL;
    job->top = top << 24 | 0xFFFFFFu;
}

static size_t low_bytes(const Coded *job) {
    uint64_t bits = 0;
    for (int e = 0; e < CONTEXTS; e++) bits += job->count[e] * job->width[e];
    return (size_t)((bits + 7) / 8);
}

typedef struct {
    uint8_t *at;
    uint64_t bits;
    unsigned held;
} BitWriter;

static inline void flush4(BitWriter *w) {
    const uint32_t word = (uint32_t)w->bits;
    memcpy(w->at, &word, 4);
    w->at += 4;
    w->bits >>= 32;
    w->held -= 32;
}

static void flush_rest(BitWriter *w) {
    for (; w->held; w->held -= w->held < 8 ? w->held : 8, w->bits >>= 8) *w->at++ = (uint8_t)w->bits;
}

/* Write low bits, quotients and escapes to out ... end; return the end of what was written. NULL when it does not fit:
 * when it comes within half of SLACK of the end, which is beyond what any caller accepts. */
static uint8_t *write_residuals(const Coded *job, uint8_t *out, uint8_t *const end) {
    const size_t room = low_bytes(job);
    if (room >= (size_t)(end - out)) return NULL;
    BitWriter low = {out, 0, 0}, unary = {out + room, 0, 0};
    uint8_t *escapes = end; /* they are collected downwards from the end, the last one lowest */
    for (size_t i = 0; i < job->n; i++) {
        const uint32_t r = job->reference ? job->reference[i] : 0;
        const uint32_t z = job->reference ? residual_delta(job->values[i], r) : residual_self(job->values[i], job->top);
        const unsigned k = job->width[exponent(r)];
        uint32_t q = z >> k;
        low.bits |= (uint64_t)(z & (((uint32_t)1 << k) - 1)) << low.held;
        low.held += k;
        if (low.held >= 32) flush4(&low);
        if (q >= LONGEST) {
            if (escapes - unary.at < 16) return NULL;
            escapes -= 4;
            memcpy(escapes, &q, 4);
            q = LONGEST;
        }
        unary.bits |= (uint64_t)1 << (unary.held + q);
        unary.held += q + 1;
        if (unary.held >= 32) {
            if (escapes - unary.at < 8) return NULL;
            flush4(&unary);
        }
    }
    if (escapes - unary.at < 8) return NULL;
    flush_rest(&low);
    flush_rest(&unary);
    const size_t words = (size_t)(end - escapes) / 4;
    for (size_t i = 0; i < words / 2; i++) { /* to the order of the values */
        uint32_t a, b;
        uint8_t *left = escapes + 4 * i, *right = end - 4 * (i + 1);
        memcpy(&a, left, 4);
        memcpy(&b, right, 4);
        memcpy(left, &b, 4);
        memcpy(right, &a, 4);
    }
    memmove(unary.at, escapes, 4 * words);
    return unary.at + 4 * words;
}

static size_t encode_delta(Coded *job, uint8_t *out, size_t room, uint32_t *classes) {
    if (!plan_delta(job, classes)) {
        out[0] = RECORD_SAME;
        return 1;
    }
    uint8_t *at = out;
    *at++ = RECORD_DELTA; /* n values have at most n contexts */
    for (int e = 0; e < CONTEXTS; e++)
        if (job->count[e]) *at++ = job->width[e];
    at = write_residuals(job, at, out + room + SLACK);
    return at && (size_t)(at - out) < room ? (size_t)(at - out) : 0;
}

static size_t encode_self(Coded *job, uint8_t *out, size_t room) {
    plan_self(job);
    out[0] = RECORD_SELF;
    out[1] = (uint8_t)(job->top >> 24);
    uint8_t *end = write_residuals(job, out + 2, out + room + SLACK);
    return end && (size_t)(end - out) < room ? (size_t)(end - out) : 0;
}

/* Encode n values to out[1 + 4 n + SLACK] and return the length of the record; spare is as long, classes are
 * CONTEXTS * CLASSES zeros. */
static size_t encode_values(const uint32_t *values, const uint32_t *reference, size_t n, uint8_t *out, uint8_t *spare,
                            uint32_t *classes) {
    const size_t room = 1 + 4 * n;
    Coded job = {values, reference, n, 0, {0}, {0}};
    size_t size = n && reference ? encode_delta(&job, out, room, classes) : 0;
    if (n && (!size || size > 4 * n - n / 2)) { /* the reference helps little or not at all */
        const size_t by_itself = encode_self(&job, spare, size ? size : room);
        if (by_itself) {
            memcpy(out, spare, by_itself);
            size = by_itself;
        }
    }
    if (size) return size;
    out[0] = RECORD_RAW;
    if (n) memcpy(out + 1, values, 4 * n);
    return room;
}

/* The 57 or more bits from bit `at` of data ... end on; zeros beyond the end. */
static inline uint64_t window(const uint8_t *data, const uint8_t *end, size_t at) {
    const uint8_t *from = data + at / 8;
    uint64_t bits = 0;
    if (end - from >= 8)
        memcpy(&bits, from, 8);
    else if (end > from)
        memcpy(&bits, from, (size_t)(end - from));
    return bits >> at % 8;
}

static int padded(const uint8_t *data, size_t bits) { return bits % 8 && data[bits / 8] >> bits % 8; }

/* Decode low bits at data and what follows them up to end. Escaped values take a second, slower pass. */
static int read_residuals(const Coded *job, const uint8_t *data, const uint8_t *end, uint32_t *out) {
    const size_t room = low_bytes(job);
    if (room > (size_t)(end - data)) return BAD_LENGTH;
    const uint8_t *unary = data + room;
    size_t low = 0, position = 0, escapes = 0;
    const size_t limit = 8 * (size_t)(end - unary);
    for (size_t i = 0; i < job->n; i++) {
        const uint32_t r = job->reference ? job->reference[i] : 0;
        const unsigned k = job->width[exponent(r)];
        const uint64_t ahead = window(unary, end, position);
        const unsigned q = ahead ? LOWEST(ahead) : 64;
        if (q > LONGEST) return position + q >= limit ? BAD_LENGTH : BAD_QUOTIENT;
        const uint32_t z = (uint32_t)((uint64_t)q << k) | ((uint32_t)window(data, unary, low) & (((uint32_t)1 << k) - 1));
        if ((uint64_t)q << k > 0xFFFFFFFFu && q < LONGEST) return BAD_QUOTIENT;
        low += k;
        position += q + 1;
        escapes += q == LONGEST;
        out[i] = job->reference ? value_delta(z, r) : value_self(z, job->top);
    }
    const uint8_t *rest = unary + (position + 7) / 8;
    if (padded(data, low) || padded(unary, position)) return BAD_PADDING;
    if (rest > end || (size_t)(end - rest) != 4 * escapes) return BAD_LENGTH;
    if (!escapes) return VALUES_OK;
    position = low = 0;
    for (size_t i = 0; i < job->n; i++) { /* replace the escaped values; the others are right already */
        const uint32_t r = job->reference ? job->reference[i] : 0;
        const unsigned k = job->width[exponent(r)], q = LOWEST(window(unary, end, position));
        position += q + 1;
        if (q == LONGEST) {
            uint32_t escaped;
            memcpy(&escaped, rest, 4);
            rest += 4;
            if (escaped < LONGEST || (uint64_t)escaped << k > 0xFFFFFFFFu) return BAD_ESCAPE;
            const uint32_t z = escaped << k | ((uint32_t)window(data, unary, low) & (((uint32_t)1 << k) - 1));
            out[i] = job->reference ? value_delta(z, r) : value_self(z, job->top);
        }
        low += k;
    }
    return VALUES_OK;
}

static int decode_delta(const uint8_t *data, const uint8_t *end, Coded *job, uint32_t *out) {
    if (!job->reference) return BAD_MODE;
    for (size_t i = 0; i < job->n; i++) job->count[exponent(job->reference[i])]++;
    for (int e = 0; e < CONTEXTS; e++) {
        if (!job->count[e]) continue;
        if (data == end) return BAD_LENGTH;
        if (*data > MAX_WIDTH) return BAD_WIDTH;
        job->width[e] = *data++;
    }
    return read_residuals(job, data, end, out);
}

static int decode_self(const uint8_t *data, const uint8_t *end, Coded *job, uint32_t *out) {
    if (data == end) return BAD_LENGTH;
    job->reference = NULL;
    job->count[0] = job->n;
    job->width[0] = SELF_WIDTH;
    job->top = (uint32_t)data[0] << 24 | 0xFFFFFFu;
    return read_residuals(job, data + 1, end, out);
}

static int decode_values(const uint8_t *record, size_t size, const uint32_t *reference, uint32_t *out, size_t n) {
    Coded job = {NULL, reference, n, 0, {0}, {0}};
    if (!size) return BAD_LENGTH;
    if (record[0] == RECORD_DELTA) return decode_delta(record + 1, record + size, &job, out);
    if (record[0] == RECORD_SELF) return decode_self(record + 1, record + size, &job, out);
    if (record[0] == RECORD_RAW) {
        if (size != 1 + 4 * n) return BAD_LENGTH;
        if (n) memcpy(out, record + 1, 4 * n);
        return VALUES_OK;
    }
    if (record[0] != RECORD_SAME || !reference) return BAD_MODE;
    if (size != 1) return BAD_LENGTH;
    if (n) memcpy(out, reference, 4 * n);
    return VALUES_OK;
}

#endif
