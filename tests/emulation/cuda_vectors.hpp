// Vector types: loads and stores of up to 16 bytes. Part of cuda.hpp.
#pragma once

#define SIMT_VECTORS(name, Item)                                                         \
  struct alignas(2 * sizeof(Item)) name##2 { Item x, y; };                               \
  struct alignas(sizeof(Item) < 8 ? 4 * sizeof(Item) : 16) name##4 { Item x, y, z, w; }; \
  inline name##2 make_##name##2(Item x, Item y) { return {x, y}; }                       \
  inline name##4 make_##name##4(Item x, Item y, Item z, Item w) { return {x, y, z, w}; }
SIMT_VECTORS(char, signed char)
SIMT_VECTORS(uchar, unsigned char)
SIMT_VECTORS(short, short)
SIMT_VECTORS(ushort, unsigned short)
SIMT_VECTORS(int, int)
SIMT_VECTORS(uint, unsigned)
SIMT_VECTORS(longlong, long long)
SIMT_VECTORS(ulonglong, unsigned long long)
SIMT_VECTORS(float, float)
SIMT_VECTORS(double, double)
#undef SIMT_VECTORS
