// Instruction sets of the CPU kernels. A file named <stem>.isa.cpp is compiled once per set, with CLEAD_ISA naming the
// namespace it fills; the launcher picks one at run time. Such a file and the headers it includes must give everything
// internal linkage: an inline function compiled for AVX-512 could otherwise replace its baseline copy at link time.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define CLEAD_FOR_EACH_ISA(M) M(baseline) M(avx2) M(avx512)
#else
#define CLEAD_FOR_EACH_ISA(M) M(baseline)
#endif

namespace clead {

enum class Isa { baseline, avx2, avx512 };

// The widest set this machine has, or the one the environment variable CLEAD_ISA asks for; read once. Throws
// std::runtime_error if CLEAD_ISA names none or one the machine lacks.
Isa isa();

const char* isa_name(Isa);

// How pairs of bfloat16 are multiplied, on top of Isa::avx512. Files named <stem>.bf16.cpp are compiled once for each but
// none.
enum class Products16 { none, avx512_bf16, amx };

// The best this machine has; CLEAD_ISA=avx512_bf16 or amx asks for one, and the name of an Isa for none.
Products16 products16();

const char* products16_name(Products16);

}  // namespace clead

// Calls namespace::call for the instruction set in use, from inside namespace clead.
#if defined(__x86_64__) || defined(_M_X64)
#define CLEAD_ISA_CALL(call)                        \
  switch (::clead::isa()) {                         \
    case ::clead::Isa::avx512: avx512::call; break; \
    case ::clead::Isa::avx2: avx2::call; break;     \
    default: baseline::call;                        \
  }
#else
#define CLEAD_ISA_CALL(call) baseline::call
#endif
