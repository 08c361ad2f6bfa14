/* fedmpi.sparse._native: the compiled kernels, called through fedmpi.sparse.kernels.
 *
 * Arrays arrive through the buffer protocol. Python has checked shapes and dtypes; what is checked again here is what
 * memory safety rests on: lengths, mask bits beyond the end, and that masks and values agree in number.
 * The interpreter lock is released while a kernel runs.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "avx2.h"
#include "avx512.h"
#include "scalar.h"
#include "values.h"

static const char *const LEVELS[] = {"scalar", "avx2", "avx512"};
enum { SCALAR, AVX_2, AVX_512 };
static int level = SCALAR, best_level = SCALAR;

static int run_expand(const float *values, size_t count, const uint64_t *words, float *out, size_t n) {
#if FEDMPI_X86
    if (level == AVX_512) return expand_avx512(values, count, words, out, n);
    if (level == AVX_2) return expand_avx2(values, count, words, out, n);
#endif
    return expand_scalar(values, count, words, out, n, 0, 0);
}

static void run_masked_copy(const float *dense, const uint64_t *words, float *out, size_t n) {
#if FEDMPI_X86
    if (level == AVX_512) {
        masked_copy_avx512(dense, words, out, n);
        return;
    }
    if (level == AVX_2) {
        masked_copy_avx2(dense, words, out, n);
        return;
    }
#endif
    masked_copy_scalar(dense, words, out, n, 0);
}

static size_t run_count(const uint64_t *words, size_t n_words) {
#if FEDMPI_X86
    if (level >= AVX_2) return count_avx2(words, n_words);
#endif
    return count_scalar(words, n_words);
}

/* All entries of a large vector are a copy, which is faster past the caches. */
static int run_pack(const float *dense, const uint64_t *words, size_t n, float *out, size_t count) {
#if FEDMPI_X86
    if (level > SCALAR && count == n && n >= STREAMED) {
        if (run_count(words, (n + WORD - 1) / WORD) != n) return -1;
        run_masked_copy(dense, words, out, n);
        return 0;
    }
    if (level == AVX_512) return pack_avx512(dense, words, n, out, count);
    if (level == AVX_2) return pack_avx2(dense, words, n, out, count);
#endif
    return pack_scalar(dense, words, n, out, count, 0, 0);
}

static void run_extract(const uint64_t *words, const uint64_t *select, size_t n_words, uint64_t *out) {
#if FEDMPI_X86
    if (level >= AVX_2) {
        extract_avx2(words, select, n_words, out);
        return;
    }
#endif
    extract_scalar(words, select, n_words, out);
}

static void run_deposit(const uint64_t *packed, size_t n_packed, const uint64_t *select, size_t n_words,
                        uint64_t *out) {
#if FEDMPI_X86
    if (level >= AVX_2) {
        deposit_avx2(packed, n_packed, select, n_words, out);
        return;
    }
#endif
    deposit_scalar(packed, n_packed, select, n_words, out);
}

static int merge_by_level(Merge *job) {
#if FEDMPI_X86
    if (level == AVX_512) return merge_avx512(job);
    if (level == AVX_2) return merge_avx2(job);
#endif
    return merge_scalar(job, 0);
}

static int run_merge(Merge *job) {
    for (size_t k = 0; k < job->k; k++) job->total += job->clients[k].weight;
    if (merge_by_level(job)) return -1;
    for (size_t k = 0; k < job->k; k++)
        if (job->clients[k].left) return -1;
    return 0;
}

/* Get a C-contiguous buffer of `itemsize` items; 0, or -1 with an exception set and nothing to release. */
static int get(PyObject *object, Py_buffer *view, Py_ssize_t itemsize, int writable) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0))) return -1;
    if (view->itemsize == itemsize) return 0;
    PyErr_Format(PyExc_TypeError, "an array of %zd-byte items is needed, got %zd", itemsize, view->itemsize);
    PyBuffer_Release(view);
    return -1;
}

static size_t items(const Py_buffer *view) { return (size_t)(view->len / view->itemsize); }

/* Masks have one word per started 64 entries and no bit set beyond entry n. */
static int words_fit(const Py_buffer *words, size_t n) {
    const uint64_t *bits = words->buf;
    if (items(words) == (n + WORD - 1) / WORD && (n % WORD == 0 || bits[n / WORD] >> n % WORD == 0)) return 1;
    PyErr_SetString(PyExc_ValueError, "the mask words do not fit the number of entries");
    return 0;
}

static PyObject *done(int failed) {
    if (!failed) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the number of values is not the number of mask bits");
    return NULL;
}

static PyObject *py_pack(PyObject *self, PyObject *args) {
    PyObject *objects[3], *result = NULL;
    Py_buffer dense, words, out;
    int failed;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO:pack", &objects[0], &objects[1], &objects[2])) return NULL;
    if (get(objects[0], &dense, 4, 0)) return NULL;
    if (get(objects[1], &words, 8, 0)) goto release_dense;
    if (get(objects[2], &out, 4, 1)) goto release_words;
    if (words_fit(&words, items(&dense))) {
        Py_BEGIN_ALLOW_THREADS;
        failed = run_pack(dense.buf, words.buf, items(&dense), out.buf, items(&out));
        Py_END_ALLOW_THREADS;
        result = done(failed);
    }
    PyBuffer_Release(&out);
release_words:
    PyBuffer_Release(&words);
release_dense:
    PyBuffer_Release(&dense);
    return result;
}

static PyObject *py_expand(PyObject *self, PyObject *args) {
    PyObject *objects[3], *result = NULL;
    Py_buffer values, words, out;
    int failed;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO:expand", &objects[0], &objects[1], &objects[2])) return NULL;
    if (get(objects[0], &values, 4, 0)) return NULL;
    if (get(objects[1], &words, 8, 0)) goto release_values;
    if (get(objects[2], &out, 4, 1)) goto release_words;
    if (words_fit(&words, items(&out))) {
        Py_BEGIN_ALLOW_THREADS;
        failed = run_expand(values.buf, items(&values), words.buf, out.buf, items(&out));
        Py_END_ALLOW_THREADS;
        result = done(failed);
    }
    PyBuffer_Release(&out);
release_words:
    PyBuffer_Release(&words);
release_values:
    PyBuffer_Release(&values);
    return result;
}

static PyObject *py_masked_copy(PyObject *self, PyObject *args) {
    PyObject *objects[3], *result = NULL;
    Py_buffer dense, words, out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO:masked_copy", &objects[0], &objects[1], &objects[2])) return NULL;
    if (get(objects[0], &dense, 4, 0)) return NULL;
    if (get(objects[1], &words, 8, 0)) goto release_dense;
    if (get(objects[2], &out, 4, 1)) goto release_words;
    if (items(&out) != items(&dense)) {
        PyErr_SetString(PyExc_ValueError, "the arrays' lengths do not fit each other");
    } else if (words_fit(&words, items(&dense))) {
        Py_BEGIN_ALLOW_THREADS;
        run_masked_copy(dense.buf, words.buf, out.buf, items(&dense));
        Py_END_ALLOW_THREADS;
        result = done(0);
    }
    PyBuffer_Release(&out);
release_words:
    PyBuffer_Release(&words);
release_dense:
    PyBuffer_Release(&dense);
    return result;
}

/* Fill *client from item k of both sequences; views gets its two buffers, to be released by the caller on success. */
static int get_client(PyObject *values, PyObject *words, Py_ssize_t k, size_t n, Client *client, Py_buffer *views) {
    PyObject *value = PySequence_GetItem(values, k), *word = value ? PySequence_GetItem(words, k) : NULL;
    int failed = -1;
    if (value && word && get(value, &views[0], 4, 0) == 0) {
        if (get(word, &views[1], 8, 0) == 0) {
            failed = words_fit(&views[1], n) ? 0 : -1;
            if (failed) PyBuffer_Release(&views[1]);
        }
        if (failed) PyBuffer_Release(&views[0]);
    }
    Py_XDECREF(value);
    Py_XDECREF(word);
    if (failed) return -1;
    client->next = views[0].buf;
    client->left = items(&views[0]);
    client->words = views[1].buf;
    client->in_tail = 0;
    return 0;
}

static PyObject *merge_clients(Merge *job, PyObject *values, PyObject *words, const float *weights) {
    PyObject *result = NULL;
    size_t taken = 0;
    int failed;
    Py_buffer *views = PyMem_Calloc(2 * job->k + 1, sizeof(Py_buffer));
    job->clients = PyMem_Calloc(job->k + 1, sizeof(Client));
    if (!views || !job->clients) {
        PyErr_NoMemory();
        goto end;
    }
    for (; taken < job->k; taken++) {
        if (get_client(values, words, (Py_ssize_t)taken, job->n, &job->clients[taken], &views[2 * taken])) goto end;
        job->clients[taken].weight = weights[taken];
    }
    Py_BEGIN_ALLOW_THREADS;
    failed = run_merge(job);
    Py_END_ALLOW_THREADS;
    result = done(failed);
end:
    for (size_t i = 0; i < 2 * taken; i++) PyBuffer_Release(&views[i]);
    PyMem_Free(views);
    PyMem_Free(job->clients);
    return result;
}

static PyObject *py_merge(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"old", "values", "words", "weights", "out", "skip_pruned", NULL};
    PyObject *objects[3], *values, *words, *result = NULL;
    Py_buffer old, weights, out;
    int skip_pruned;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOp:merge", names, &objects[0], &values, &words, &objects[1],
                                     &objects[2], &skip_pruned))
        return NULL;
    if (get(objects[0], &old, 4, 0)) return NULL;
    if (get(objects[1], &weights, 4, 0)) goto release_old;
    if (get(objects[2], &out, 4, 1)) goto release_weights;
    Py_ssize_t k = (Py_ssize_t)items(&weights);
    if (items(&out) == items(&old) && PySequence_Size(values) == k && PySequence_Size(words) == k) {
        Merge job = {old.buf, out.buf, items(&old), NULL, (size_t)k, 0.0f, skip_pruned};
        result = merge_clients(&job, values, words, weights.buf);
    } else if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "the arrays' lengths do not fit each other");
    }
    PyBuffer_Release(&out);
release_weights:
    PyBuffer_Release(&weights);
release_old:
    PyBuffer_Release(&old);
    return result;
}

/* Xor and sum of the 64-bit words that pairs of 32-bit values form; with `odd`, value 0 is a high half. */
static void checksum(const char *data, size_t count, int odd, uint64_t *xor64, uint64_t *sum64) {
    uint64_t x = 0, s = 0, word;
    uint32_t half;
    if (odd && count) {
        memcpy(&half, data, 4);
        x = s = (uint64_t)half << 32;
        data += 4;
        count--;
    }
    for (size_t i = 0; i < count / 2; i++) {
        memcpy(&word, data + 8 * i, 8);
        x ^= word;
        s += word;
    }
    if (count % 2) {
        memcpy(&half, data + 4 * (count - 1), 4);
        x ^= half;
        s += half;
    }
    *xor64 = x;
    *sum64 = s;
}

static PyObject *py_checksum(PyObject *self, PyObject *args) {
    PyObject *object;
    Py_buffer values;
    int odd;
    uint64_t xor64, sum64;
    (void)self;
    if (!PyArg_ParseTuple(args, "Op:checksum", &object, &odd) || get(object, &values, 4, 0)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    checksum(values.buf, items(&values), odd, &xor64, &sum64);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&values);
    return Py_BuildValue("(KK)", (unsigned long long)xor64, (unsigned long long)sum64);
}

static PyObject *py_count(PyObject *self, PyObject *object) {
    Py_buffer words;
    size_t total;
    (void)self;
    if (get(object, &words, 8, 0)) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    total = run_count(words.buf, items(&words));
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&words);
    return PyLong_FromSize_t(total);
}

/* Three arrays of words: source, select, out. With `pack`, source and select go together; else out and select do. */
static PyObject *move_bits(PyObject *args, int pack) {
    PyObject *objects[3], *result = NULL;
    Py_buffer source, select, out;
    if (!PyArg_ParseTuple(args, "OOO", &objects[0], &objects[1], &objects[2])) return NULL;
    if (get(objects[0], &source, 8, 0)) return NULL;
    if (get(objects[1], &select, 8, 0)) goto release_source;
    if (get(objects[2], &out, 8, 1)) goto release_select;
    const Py_buffer *whole = pack ? &source : &out, *part = pack ? &out : &source;
    const size_t count = run_count(select.buf, items(&select));
    if (items(whole) != items(&select) || items(part) != (count + WORD - 1) / WORD) {
        PyErr_SetString(PyExc_ValueError, "the words do not fit each other");
    } else {
        Py_BEGIN_ALLOW_THREADS;
        memset(out.buf, 0, (size_t)out.len);
        if (pack)
            run_extract(source.buf, select.buf, items(&select), out.buf);
        else
            run_deposit(source.buf, items(&source), select.buf, items(&select), out.buf);
        Py_END_ALLOW_THREADS;
        result = done(0);
    }
    PyBuffer_Release(&out);
release_select:
    PyBuffer_Release(&select);
release_source:
    PyBuffer_Release(&source);
    return result;
}

static PyObject *py_extract(PyObject *self, PyObject *args) {
    (void)self;
    return move_bits(args, 1);
}

static PyObject *py_deposit(PyObject *self, PyObject *args) {
    (void)self;
    return move_bits(args, 0);
}

/* Two buffers of as many floats, the second of which may be None. */
static int get_reference(PyObject *object, Py_buffer *view, size_t n, const uint32_t **bits) {
    *bits = NULL;
    if (object == Py_None) return 0;
    if (get(object, view, 4, 0)) return -1;
    if (items(view) == n) {
        *bits = view->buf;
        return 0;
    }
    PyErr_SetString(PyExc_ValueError, "values and reference differ in number");
    PyBuffer_Release(view);
    return -1;
}

static PyObject *py_encode_values(PyObject *self, PyObject *args) {
    PyObject *objects[3], *result = NULL;
    Py_buffer values, reference, out;
    const uint32_t *bits;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO:encode_values", &objects[0], &objects[1], &objects[2])) return NULL;
    if (get(objects[0], &values, 4, 0)) return NULL;
    if (get_reference(objects[1], &reference, items(&values), &bits)) goto release_values;
    if (get(objects[2], &out, 1, 1)) goto release_reference;
    const size_t room = 1 + 4 * items(&values) + SLACK;
    uint32_t *classes = PyMem_Calloc(CONTEXTS * CLASSES, sizeof *classes);
    uint8_t *spare = PyMem_Malloc(room);
    if (!classes || !spare) {
        PyErr_NoMemory();
    } else if (items(&out) < room) {
        PyErr_SetString(PyExc_ValueError, "out is too short");
    } else {
        size_t size;
        Py_BEGIN_ALLOW_THREADS;
        size = encode_values(values.buf, bits, items(&values), out.buf, spare, classes);
        Py_END_ALLOW_THREADS;
        result = PyLong_FromSize_t(size);
    }
    PyMem_Free(classes);
    PyMem_Free(spare);
    PyBuffer_Release(&out);
release_reference:
    if (bits) PyBuffer_Release(&reference);
release_values:
    PyBuffer_Release(&values);
    return result;
}

static PyObject *py_decode_values(PyObject *self, PyObject *args) {
    PyObject *objects[3], *result = NULL;
    Py_buffer record, reference, out;
    const uint32_t *bits;
    int error;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO:decode_values", &objects[0], &objects[1], &objects[2])) return NULL;
    if (get(objects[0], &record, 1, 0)) return NULL;
    if (get(objects[2], &out, 4, 1)) goto release_record;
    if (get_reference(objects[1], &reference, items(&out), &bits)) goto release_out;
    Py_BEGIN_ALLOW_THREADS;
    error = decode_values(record.buf, items(&record), bits, out.buf, items(&out));
    Py_END_ALLOW_THREADS;
    if (error)
        PyErr_SetString(PyExc_ValueError, VALUE_ERRORS[error]);
    else
        result = done(0);
    if (bits) PyBuffer_Release(&reference);
release_out:
    PyBuffer_Release(&out);
release_record:
    PyBuffer_Release(&record);
    return result;
}

static PyObject *py_level(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyUnicode_FromString(LEVELS[level]);
}

static PyObject *py_levels(PyObject *self, PyObject *unused) {
    PyObject *names = PyList_New(0);
    (void)self;
    (void)unused;
    for (int i = 0; names && i <= best_level; i++) {
        PyObject *name = PyUnicode_FromString(LEVELS[i]);
        if (!name || PyList_Append(names, name)) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *py_set_level(PyObject *self, PyObject *name) {
    (void)self;
    for (int i = 0; PyUnicode_Check(name) && i <= best_level; i++) {
        if (PyUnicode_CompareWithASCIIString(name, LEVELS[i]) == 0) {
            level = i;
            Py_RETURN_NONE;
        }
    }
    return PyErr_Format(PyExc_ValueError, "level %R is not one that this machine has", name);
}

static PyMethodDef methods[] = {
    {"pack", py_pack, METH_VARARGS, "pack(dense, words, out)"},
    {"expand", py_expand, METH_VARARGS, "expand(values, words, out)"},
    {"masked_copy", py_masked_copy, METH_VARARGS, "masked_copy(dense, words, out)"},
    {"merge", (PyCFunction)(void (*)(void))py_merge, METH_VARARGS | METH_KEYWORDS,
     "merge(old, values, words, weights, out, *, skip_pruned)"},
    {"checksum", py_checksum, METH_VARARGS, "checksum(values, odd) -> (xor64, sum64)"},
    {"count", py_count, METH_O, "count(words) -> number of set bits"},
    {"extract", py_extract, METH_VARARGS, "extract(words, select, out)"},
    {"deposit", py_deposit, METH_VARARGS, "deposit(packed, select, out)"},
    {"encode_values", py_encode_values, METH_VARARGS, "encode_values(values, reference or None, out) -> length"},
    {"decode_values", py_decode_values, METH_VARARGS, "decode_values(record, reference or None, out)"},
    {"level", py_level, METH_NOARGS, "level() -> the instruction set in use"},
    {"levels", py_levels, METH_NOARGS, "levels() -> those that this machine has, the best last"},
    {"set_level", py_set_level, METH_O, "set_level(name): for tests and measurements"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "fedmpi.sparse._native",
                                        "Compiled kernels; call them through fedmpi.sparse.kernels.", -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
#if FEDMPI_X86
    __builtin_cpu_init();
    fill_lanes();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"))
        best_level = AVX_2;
    if (best_level == AVX_2 && __builtin_cpu_supports("avx512f")) best_level = AVX_512;
#endif
    level = best_level;
    return PyModule_Create(&definition);
}
