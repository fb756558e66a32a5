//! What the hosts of one guest must agree on.
//!
//! One kernel and its processes run on all of them, and move between them at any time. What they found
//! out about the CPU and the host on one must hold on every other: which instructions exist, and how
//! the state of the CPU is laid out where the kernel saves it (its size is part of every
//! `task_struct`).

use serde::{Deserialize, Serialize};

/// Most components that an XSAVE area can have beside the two that every one begins with.
pub const XSAVE_PARTS_MAX: usize = 62;

/// What one host is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub page_bytes: u64,
    /// Where the stacks of processes end that are started without address randomisation. The kernel
    /// measures it where it boots, and has its stubs there on every host.
    pub stack_end: u64,
    /// In the order of [`FEATURES`]; bits without a name there are 0.
    pub features: [u32; FEATURES.len()],
    pub xsave: Xsave,
}

/// How the host's kernel has XSAVE lay out the state of a CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xsave {
    /// Components in use, as in the register XCR0.
    pub components: u64,
    pub bytes: u32,
    pub parts: Vec<XsavePart>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsavePart {
    pub component: u32,
    pub offset: u32,
    pub bytes: u32,
}

/// Where a word of feature bits is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Cpuid {
        leaf: u32,
        subleaf: u32,
        register: Register,
    },
    /// `AT_HWCAP2` of the auxiliary vector: what the host's kernel lets programs use.
    Hwcap2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One word of feature bits.
#[derive(Debug)]
pub struct FeatureWord {
    pub source: Source,
    /// Bits that must be the same everywhere, with the names that `/proc/cpuinfo` has for them.
    pub bits: &'static [(u32, &'static str)],
}

impl FeatureWord {
    /// All bits with a name.
    pub fn mask(&self) -> u32 {
        self.bits.iter().fold(0, |mask, (bit, _)| mask | 1 << bit)
    }
}

const fn cpuid(
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: &'static [(u32, &'static str)],
) -> FeatureWord {
    FeatureWord {
        source: Source::Cpuid {
            leaf,
            subleaf,
            register,
        },
        bits,
    }
}

/// The features that decide whether an instruction of a program, or of a kernel that runs as one,
/// exists. Not among them: what only a host's kernel can use, what only says that something is fast,
/// and which of its own faults a CPU has.
pub const FEATURES: [FeatureWord; 11] = [
    cpuid(
        1,
        0,
        Register::Edx,
        &[
            (4, "tsc"),
            (8, "cx8"),
            (15, "cmov"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
        ],
    ),
    cpuid(
        1,
        0,
        Register::Ecx,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (27, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    cpuid(
        7,
        0,
        Register::Ebx,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (8, "bmi2"),
            (11, "rtm"),
            (14, "mpx"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    cpuid(
        7,
        0,
        Register::Ecx,
        &[
            (1, "avx512vbmi"),
            (4, "ospke"),
            (5, "waitpkg"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (22, "rdpid"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    ),
    cpuid(
        7,
        0,
        Register::Edx,
        &[
            (2, "avx512_4vnniw"),
            (3, "avx512_4fmaps"),
            (8, "avx512_vp2intersect"),
            (14, "serialize"),
            (16, "tsxldtrk"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
        ],
    ),
    cpuid(
        7,
        1,
        Register::Eax,
        &[
            (0, "sha512"),
            (1, "sm3"),
            (2, "sm4"),
            (3, "raoint"),
            (4, "avx_vnni"),
            (5, "avx512_bf16"),
            (7, "cmpccxadd"),
            (21, "amx_fp16"),
            (23, "avx_ifma"),
        ],
    ),
    cpuid(
        7,
        1,
        Register::Edx,
        &[
            (4, "avx_vnni_int8"),
            (5, "avx_ne_convert"),
            (8, "amx_complex"),
            (10, "avx_vnni_int16"),
            (19, "avx10"),
            (21, "apx_f"),
        ],
    ),
    cpuid(
        0xd,
        1,
        Register::Eax,
        &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")],
    ),
    cpuid(
        0x8000_0001,
        0,
        Register::Ecx,
        &[
            (0, "lahf_lm"),
            (5, "abm"),
            (6, "sse4a"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
            (29, "mwaitx"),
        ],
    ),
    cpuid(
        0x8000_0001,
        0,
        Register::Edx,
        &[
            (22, "mmxext"),
            (27, "rdtscp"),
            (30, "3dnowext"),
            (31, "3dnow"),
        ],
    ),
    FeatureWord {
        source: Source::Hwcap2,
        bits: &[(1, "fsgsbase in programs")],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_feature_has_one_place_and_one_name() {
        let mut names = BTreeSet::new();
        for (index, word) in FEATURES.iter().enumerate() {
            let others = &FEATURES[..index];
            assert!(others.iter().all(|other| other.source != word.source));
            assert_eq!(word.mask().count_ones() as usize, word.bits.len());
            for (_, name) in word.bits {
                assert!(names.insert(*name), "{name}");
            }
        }
    }
}
