/* XOR masking of WebSocket payloads, RFC 6455 section 5.3.
 *
 * Owns: the code for short payloads, the vector loop for long ones, the choice of its version (_mask.c).
 * Never: makes keys, knows of frames, or calls Python.
 *
 * Everywhere: `key` holds the four key bytes in the order they have in memory; `dst` and `src` are equal or
 * do not overlap at all; neither has to be aligned.
 *
 * One idea serves every length: a payload that is no multiple of the word in use ends with a word that
 * overlaps the one before. What may overlap is read before any of it is written, so in place no byte is masked twice.
 */
#ifndef FABRIC_MASK_H
#define FABRIC_MASK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* From this many bytes on the vector loop is worth its set-up and an indirect call. */
#define FABRIC_MASK_LONG 64

#define FABRIC_MASK_INLINE static inline __attribute__((always_inline))

/* Masks n >= FABRIC_MASK_LONG bytes. */
typedef void (*fabric_mask_kernel)(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key);

/* The kernel called `name` ("baseline", "avx2"), or NULL where this processor or build lacks it. */
fabric_mask_kernel fabric_mask_named(const char *name);

/* The name of the fastest kernel this processor runs. */
const char *fabric_mask_fastest(void);

/* The key as it looks from a byte `offset` places into the payload. */
FABRIC_MASK_INLINE uint32_t fabric_mask_rotate(uint32_t key, size_t offset)
{
    const unsigned bits = (unsigned)(offset & 3) * 8;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (key << bits) | (key >> (-bits & 31));
#else
    return (key >> bits) | (key << (-bits & 31));
#endif
}

/* Words of every width that may lie anywhere and alias anything. */
typedef uint32_t fabric_word4 __attribute__((aligned(1), may_alias));
typedef uint64_t fabric_word8 __attribute__((aligned(1), may_alias));
typedef uint32_t fabric_word16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint32_t fabric_word32 __attribute__((vector_size(32), aligned(1), may_alias));

#define FABRIC_KEY4(key) (key)
#define FABRIC_KEY8(key) ((uint64_t)(key) << 32 | (key))
#define FABRIC_KEY16(key) ((fabric_word16){(key), (key), (key), (key)})
#define FABRIC_KEY32(key) ((fabric_word32){(key), (key), (key), (key), (key), (key), (key), (key)})

/* The word of `width` bytes at place i of src, masked. */
#define FABRIC_MASKED(width, i, key) (*(const fabric_word##width *)(src + (i)) ^ FABRIC_KEY##width(key))
#define FABRIC_STORE(width, i, word) (*(fabric_word##width *)(dst + (i)) = (word))

/* Masks n < FABRIC_MASK_LONG bytes, without a loop from 4 bytes on. */
FABRIC_MASK_INLINE void fabric_mask_short(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key)
{
    const uint32_t turned = fabric_mask_rotate(key, n); /* seen from n - width, for every width */
    if (n > 32) {
        const fabric_word16 a = FABRIC_MASKED(16, 0, key), b = FABRIC_MASKED(16, 16, key);
        const fabric_word16 c = FABRIC_MASKED(16, n - 32, turned), d = FABRIC_MASKED(16, n - 16, turned);
        FABRIC_STORE(16, 0, a);
        FABRIC_STORE(16, 16, b);
        FABRIC_STORE(16, n - 32, c);
        FABRIC_STORE(16, n - 16, d);
    } else if (n >= 16) {
        const fabric_word16 head = FABRIC_MASKED(16, 0, key), tail = FABRIC_MASKED(16, n - 16, turned);
        FABRIC_STORE(16, 0, head);
        FABRIC_STORE(16, n - 16, tail);
    } else if (n >= 8) {
        const uint64_t head = FABRIC_MASKED(8, 0, key), tail = FABRIC_MASKED(8, n - 8, turned);
        FABRIC_STORE(8, 0, head);
        FABRIC_STORE(8, n - 8, tail);
    } else if (n >= 4) {
        const uint32_t head = FABRIC_MASKED(4, 0, key), tail = FABRIC_MASKED(4, n - 4, turned);
        FABRIC_STORE(4, 0, head);
        FABRIC_STORE(4, n - 4, tail);
    } else {
        uint8_t bytes[4];
        memcpy(bytes, &key, 4);
        for (size_t i = 0; i < n; i++)
            dst[i] = src[i] ^ bytes[i];
    }
}

/* Defines a kernel that works in words of `width` bytes. Its stores are aligned, since one that straddles two
 * cache lines costs two; `first` and `last`, the words at the ends, overlap the aligned ones and follow them. */
#define FABRIC_MASK_KERNEL(name, width)                                                                      \
    static void name(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key)                               \
    {                                                                                                        \
        const fabric_word##width first = FABRIC_MASKED(width, 0, key);                                       \
        const fabric_word##width last = FABRIC_MASKED(width, n - width, fabric_mask_rotate(key, n));         \
        size_t i = width - ((uintptr_t)dst & (width - 1));                                                   \
        const uint32_t turned = fabric_mask_rotate(key, i);                                                  \
        for (; i + 4 * width <= n; i += 4 * width) {                                                         \
            const fabric_word##width a = FABRIC_MASKED(width, i, turned);                                    \
            const fabric_word##width b = FABRIC_MASKED(width, i + width, turned);                            \
            const fabric_word##width c = FABRIC_MASKED(width, i + 2 * width, turned);                        \
            const fabric_word##width d = FABRIC_MASKED(width, i + 3 * width, turned);                        \
            FABRIC_STORE(width, i, a);                                                                       \
            FABRIC_STORE(width, i + width, b);                                                               \
            FABRIC_STORE(width, i + 2 * width, c);                                                           \
            FABRIC_STORE(width, i + 3 * width, d);                                                           \
        }                                                                                                    \
        for (; i + width < n; i += width)                                                                    \
            FABRIC_STORE(width, i, FABRIC_MASKED(width, i, turned));                                         \
        FABRIC_STORE(width, 0, first);                                                                       \
        FABRIC_STORE(width, n - width, last);                                                                \
    }

/* What every processor has: SSE2 on x86-64, NEON on AArch64, plain words where there are no vectors. */
__attribute__((unused)) FABRIC_MASK_KERNEL(fabric_mask_baseline, 16)

/* Any length, nothing to link: for callers that do not count nanoseconds. */
FABRIC_MASK_INLINE void fabric_mask_simple(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key)
{
    if (n < FABRIC_MASK_LONG)
        fabric_mask_short(dst, src, n, key);
    else
        fabric_mask_baseline(dst, src, n, key);
}

#endif
