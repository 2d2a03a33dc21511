/* XOR masking of WebSocket payloads, RFC 6455 section 5.3.
 *
 * Owns: the inline code for short payloads and the entry point of the vector kernels for long ones (_mask.c).
 * Never: chooses keys, knows of frames, or calls Python.
 *
 * Everywhere: `key` holds the four key bytes in the order they have in memory, so no byte swapping is needed; `dst` and
 * `src` are equal or do not overlap at all; neither has to be aligned.
 */
#ifndef FABRIC_MASK_H
#define FABRIC_MASK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* From this many bytes on a vector kernel is worth an indirect call. */
#define FABRIC_MASK_LONG 64

#if defined(_MSC_VER)
#define FABRIC_MASK_HOT static __forceinline
#else
#define FABRIC_MASK_HOT static inline __attribute__((always_inline))
#endif

/* Masks n bytes from the first key byte on; n >= FABRIC_MASK_LONG. Picked once, when the module is initialised. */
typedef void (*fabric_mask_kernel)(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key);

/* The fastest kernel this processor runs, and its name ("avx512", "avx2", "baseline"). */
fabric_mask_kernel fabric_mask_pick(const char **name);

/* A kernel by its name, or NULL where this processor cannot run it. For tests and benchmarks. */
fabric_mask_kernel fabric_mask_by_name(const char *name);

/* The key as it looks to a byte `offset` places into the payload. */
FABRIC_MASK_HOT uint32_t fabric_mask_rotate(uint32_t key, size_t offset)
{
    unsigned shift = (unsigned)(offset & 3) * 8;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return shift ? (key << shift) | (key >> (32 - shift)) : key;
#else
    return shift ? (key >> shift) | (key << (32 - shift)) : key;
#endif
}

FABRIC_MASK_HOT uint64_t fabric_mask_load64(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

FABRIC_MASK_HOT void fabric_mask_store64(uint8_t *p, uint64_t word)
{
    memcpy(p, &word, sizeof word);
}

/* Masks any number of bytes without a call: right for short payloads, merely good for long ones.
 *
 * The last, incomplete word is taken as the full word that ends with the payload. It overlaps the word before it, so it is
 * read before that one is written: in place, bytes must not be masked twice.
 */
FABRIC_MASK_HOT void fabric_mask_inline(uint8_t *dst, const uint8_t *src, size_t n, uint32_t key)
{
    if (n >= 8) {
        const uint64_t wide = ((uint64_t)key << 32) | key;
        const uint32_t turned = fabric_mask_rotate(key, n);
        const uint64_t tail = fabric_mask_load64(src + n - 8) ^ (((uint64_t)turned << 32) | turned);
        for (size_t i = 0; i + 8 < n; i += 8)
            fabric_mask_store64(dst + i, fabric_mask_load64(src + i) ^ wide);
        fabric_mask_store64(dst + n - 8, tail);
    } else if (n >= 4) {
        uint32_t head, tail;
        memcpy(&head, src, 4);
        memcpy(&tail, src + n - 4, 4);
        head ^= key;
        tail ^= fabric_mask_rotate(key, n);
        memcpy(dst, &head, 4);
        memcpy(dst + n - 4, &tail, 4);
    } else {
        uint8_t bytes[4];
        memcpy(bytes, &key, 4);
        for (size_t i = 0; i < n; i++)
            dst[i] = src[i] ^ bytes[i];
    }
}

#endif
