//! Recorded CPUs, and what is said about them. The recordings are what a small kernel read on the
//! CPU models of Bochs, and what `/dev/cpu/0/cpuid` gave in a virtual machine.

use raw_cpuid::CpuIdResult;

use super::sentences::report;
use super::{Cpu, Facts, Program, Toolchains, Tools};

/// A CPU's leaves (number, EAX, EBX, ECX, EDX) and MSRs.
#[derive(Clone, Copy)]
struct Recording {
    leaves: &'static [[u32; 5]],
    msrs: &'static [(u32, u64)],
}

/// Bochs 2.7, `core2_penryn_t9600`.
const PENRYN: Recording = Recording {
    leaves: &[
        [0x0000_0000, 0x0000_000d, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        [0x0000_0001, 0x0001_067a, 0x0001_0800, 0x0408_e3fd, 0xbfeb_fbff],
        [0x8000_0000, 0x8000_0008, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_0001, 0x0000_0000, 0x0000_0000, 0x0000_0001, 0x2010_0000],
        [0x8000_0002, 0x6574_6e49, 0x2952_286c, 0x726f_4320, 0x4d54_2865],
        [0x8000_0003, 0x4420_3229, 0x4320_6f75, 0x2020_5550, 0x5420_2020],
        [0x8000_0004, 0x3030_3639, 0x2040_2020, 0x3038_2e32, 0x007a_4847],
        [0x8000_0008, 0x0000_3028, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_000a, 0x0000_0003, 0x0000_0240, 0x0000_0240, 0x0000_0000],
    ],
    msrs: &[
        (0x3a, 0x0000_0000_0000_0005),
        (0x480, 0x00d8_1000_0000_002b),
        (0x485, 0x0000_0000_0004_01e0),
        (0x482, 0xf7f9_fffe_0401_e172),
        (0x48b, 0x0000_0041_0000_0000),
    ],
};

/// Bochs 2.7, `corei7_skylake_x`.
const SKYLAKE: Recording = Recording {
    leaves: &[
        [0x0000_0000, 0x0000_0016, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        [0x0000_0001, 0x0005_0654, 0x0001_0800, 0x77fa_f3bf, 0xbfeb_fbff],
        [0x8000_0000, 0x8000_0008, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_0001, 0x0000_0000, 0x0000_0000, 0x0000_0121, 0x2c10_0000],
        [0x8000_0002, 0x6574_6e49, 0x2952_286c, 0x726f_4320, 0x4d54_2865],
        [0x8000_0003, 0x3769_2029, 0x3038_372d, 0x4320_5830, 0x4020_5550],
        [0x8000_0004, 0x352e_3320, 0x7a48_4730, 0x0000_0000, 0x0000_0000],
        [0x8000_0008, 0x0000_3028, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_000a, 0x0000_0dac, 0x0000_0fa0, 0x0000_0064, 0x0000_0000],
    ],
    msrs: &[
        (0x3a, 0x0000_0000_0000_0005),
        (0x480, 0x00d8_1000_0000_002b),
        (0x485, 0x0000_0000_6004_01e0),
        (0x482, 0xf7f9_fffe_0401_e172),
        (0x48b, 0x0217_7fff_0000_0000),
    ],
};

/// Bochs 2.7, `ryzen`.
const RYZEN: Recording = Recording {
    leaves: &[
        [0x0000_0000, 0x0000_000d, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        [0x0000_0001, 0x0080_0f11, 0x0001_0800, 0x76d8_320b, 0x178b_fbff],
        [0x8000_0000, 0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        [0x8000_0001, 0x0080_0f11, 0x2000_0000, 0x35c2_23ff, 0x2fd3_fbff],
        [0x8000_0002, 0x2044_4d41, 0x657a_7952, 0x2037_206e, 0x3030_3731],
        [0x8000_0003, 0x6769_4520, 0x432d_7468, 0x2065_726f, 0x636f_7250],
        [0x8000_0004, 0x6f73_7365, 0x2020_2072, 0x2020_2020, 0x0020_2020],
        [0x8000_0008, 0x0000_3028, 0x0000_0001, 0x0000_0000, 0x0000_0000],
        [0x8000_000a, 0x0000_0001, 0x0000_8000, 0x0000_0000, 0x0000_044f],
    ],
    msrs: &[],
};

/// Bochs 2.7, `p4_prescott_celeron_336`: no virtualization.
const PRESCOTT: Recording = Recording {
    leaves: &[
        [0x0000_0000, 0x0000_0003, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        [0x0000_0001, 0x0000_0f41, 0x0001_0800, 0x0000_651d, 0xbfeb_fbff],
        [0x8000_0000, 0x8000_0008, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_0001, 0x0000_0000, 0x0000_0000, 0x0000_0000, 0x2010_0000],
        [0x8000_0002, 0x2020_2020, 0x2020_2020, 0x2020_2020, 0x2020_2020],
        [0x8000_0003, 0x6574_6e49, 0x2952_286c, 0x6c65_4320, 0x6e6f_7265],
        [0x8000_0004, 0x2029_5228, 0x2055_5043, 0x3038_2e32, 0x007a_4847],
        [0x8000_0008, 0x0000_3028, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_000a, 0x0000_0000, 0x0000_0000, 0x0000_0000, 0x0000_0000],
    ],
    msrs: &[],
};

/// A virtual machine under KVM, which shows it no SVM.
const EPYC_GUEST: Recording = Recording {
    leaves: &[
        [0x0000_0000, 0x0000_001c, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        [0x0000_0001, 0x00a1_0f11, 0x0002_0800, 0xfffa_3203, 0x178b_fbff],
        [0x4000_0000, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x0000_004d],
        [0x8000_0000, 0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        [0x8000_0001, 0x00a1_0f11, 0x4000_0000, 0x0040_03f3, 0x2fd3_fbff],
        [0x8000_0002, 0x2044_4d41, 0x4359_5045, 0x0000_0000, 0x0000_0000],
        [0x8000_0003, 0x0000_0000, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_0004, 0x0000_0000, 0x0000_0000, 0x0000_0000, 0x0000_0000],
        [0x8000_0008, 0x0030_3030, 0x5002_0005, 0x0000_7001, 0x0000_0000],
        [0x8000_000a, 0x0000_0000, 0x0000_0000, 0x0000_0000, 0x0000_0000],
    ],
    msrs: &[],
};

impl Recording {
    fn cpu(self) -> Cpu {
        let msr = |register| {
            let found = self.msrs.iter().find(|(number, _)| *number == register);
            found
                .map(|&(_, value)| value)
                .ok_or_else(|| format!("MSR {register:#x} cannot be read"))
        };
        Cpu::new(reader(self.leaves), msr, "")
    }

    fn cpu_without_msrs(self, kernel: &str) -> Cpu {
        let msr = |_| Err(String::from("/dev/cpu/0/msr is for root; run `sudo umbra doctor`"));
        Cpu::new(reader(self.leaves), msr, kernel)
    }
}

fn reader(leaves: &[[u32; 5]]) -> impl Fn(u32, u32) -> CpuIdResult + Clone {
    move |leaf, _| {
        let found = leaves.iter().find(|recorded| recorded[0] == leaf);
        let [_, eax, ebx, ecx, edx] = found.copied().unwrap_or_default();
        CpuIdResult { eax, ebx, ecx, edx }
    }
}

fn facts(cpu: Cpu) -> Facts {
    let toolchains =
        Toolchains { active: None, debian: None, bare_metal: Some("debian"), obstacle: None };
    Facts {
        schema: "umbra.doctor",
        version: 1,
        cpu,
        tools: Tools { programs: Vec::new(), toolchains },
        obstacle: None,
        kvm_obstacle: None,
    }
}

/// The value of a line of the report.
fn said(facts: &Facts, name: &str) -> String {
    let text = report(facts);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("  ")?.strip_prefix(name)?.strip_prefix("  "));
    String::from(value.unwrap_or_else(|| panic!("nothing about {name}:\n{text}")).trim())
}

#[test]
fn penryn_has_vmx_without_ept() {
    let facts = facts(PENRYN.cpu());
    assert_eq!(
        said(&facts, "model"),
        "Intel(R) Core(TM)2 Duo CPU     T9600  @ 2.80GHz (GenuineIntel, family 6, model 23, stepping 10)"
    );
    assert_eq!(said(&facts, "virtual"), "no");
    assert_eq!(
        said(&facts, "VMX"),
        "yes; EPT: no; VPID: no; unrestricted guest: no; CR3-target values: 4; TRUE controls: yes"
    );
    assert_eq!(said(&facts, "SVM"), "no");
    assert_eq!(said(&facts, "MAXPHYADDR"), "40");
    assert!(
        said(&facts, "Trapping")
            .starts_with("address bits 40..51 of every entry; PS=1 leaves bits 13..20")
    );
}

#[test]
fn skylake_has_ept() {
    assert_eq!(
        said(&facts(SKYLAKE.cpu()), "VMX"),
        "yes; EPT: yes; VPID: yes; unrestricted guest: yes; CR3-target values: 4; TRUE controls: yes"
    );
}

#[test]
fn without_msrs_the_kernel_is_asked_and_the_way_out_is_named() {
    let vmx = |kernel| said(&facts(SKYLAKE.cpu_without_msrs(kernel)), "VMX");
    let way_out = "the rest is not known: /dev/cpu/0/msr is for root; run `sudo umbra doctor`";
    assert_eq!(vmx(""), format!("yes; EPT: not known; {way_out}"));
    assert_eq!(vmx("vmx flags\t: vnmi ept vpid\n"), format!("yes; EPT: yes; {way_out}"));
    assert_eq!(vmx("vmx flags\t: vnmi flexpriority\n"), format!("yes; EPT: no; {way_out}"));
}

#[test]
fn firmware_may_have_locked_vmx_off() {
    let msrs =
        PENRYN.msrs.iter().map(|&(number, value)| (number, if number == 0x3a { 1 } else { value }));
    let locked = Recording { msrs: msrs.collect::<Vec<_>>().leak(), ..PENRYN };
    assert!(
        said(&facts(locked.cpu()), "VMX")
            .starts_with("yes, but the firmware has locked it off; EPT: no")
    );
}

#[test]
fn ryzen_has_svm() {
    let facts = facts(RYZEN.cpu());
    assert_eq!(facts.cpu.signature, [23, 1, 1]);
    assert_eq!(said(&facts, "VMX"), "no: Umbra's hypervisor runs here in an emulator only");
    assert_eq!(
        said(&facts, "SVM"),
        "yes; NPT: yes; next RIP: yes; ASIDs: 32768; Umbra's hypervisor uses it without NPT"
    );
}

#[test]
fn with_52_bits_no_address_bit_is_left() {
    // What the larger EPYC 9004 say; the rest of the recording stays.
    let leaves = RYZEN.leaves.iter().map(|&leaf| match leaf {
        [0x8000_0008, _, ebx, ecx, edx] => [0x8000_0008, 0x0000_3934, ebx, ecx, edx],
        other => other,
    });
    let wide = Recording { leaves: leaves.collect::<Vec<_>>().leak(), ..RYZEN };
    let facts = facts(wide.cpu());
    assert_eq!(facts.cpu.reserved_address_bits, None);
    assert_eq!(said(&facts, "MAXPHYADDR"), "52");
    assert!(
        said(&facts, "Trapping")
            .starts_with("no address bit is reserved, so no PTE can be Trapping")
    );
}

#[test]
fn a_cpu_without_virtualization() {
    let facts = facts(PRESCOTT.cpu());
    assert_eq!(said(&facts, "VMX"), "no: Umbra's hypervisor runs here in an emulator only");
    assert_eq!(said(&facts, "SVM"), "no");
}

#[test]
fn a_virtual_machine_says_under_what() {
    let facts = facts(EPYC_GUEST.cpu());
    assert!(said(&facts, "virtual").starts_with("yes, under KVM: what CPUID says"));
    assert!(said(&facts, "VMX").starts_with("no: the hypervisor below does not offer it"));
    assert!(said(&facts, "Trapping").starts_with("address bits 48..51"));
}

#[test]
fn what_is_missing_comes_with_its_command() {
    let mut facts = facts(PENRYN.cpu());
    facts.tools.programs = vec![
        Program { name: "Bochs", package: "bochs", needed: true, path: None, version: None },
        Program {
            name: "mtools",
            package: "mtools",
            needed: true,
            path: Some(String::from("/usr/bin/mformat")),
            version: Some(String::from("4.0.32")),
        },
    ];
    facts.tools.toolchains.bare_metal = None;
    facts.tools.toolchains.obstacle =
        Some(umbra_build::Error::NoToolchain { target: "x86_64-unknown-none" }.to_string());
    facts.obstacle = Some(String::from("bochs is missing; on Debian run `apt-get install bochs`"));
    assert_eq!(said(&facts, "Bochs"), "missing, needed by `umbra run`; apt-get install bochs");
    assert_eq!(said(&facts, "mtools"), "4.0.32, /usr/bin/mformat");
    assert!(said(&facts, "for the hypervisor").contains("rustup target add x86_64-unknown-none"));
    facts.kvm_obstacle = Some(String::from("--machine kvm cannot work here: no VMX"));
    let last = "`umbra run` cannot work here: bochs is missing; on Debian run `apt-get install bochs`\n\
                --machine kvm cannot work here: no VMX\n";
    assert!(report(&facts).ends_with(last), "{}", report(&facts));
}

/// Every key of the facts stands in SCHEMA.md.
#[test]
fn facts_are_documented() {
    const DOCUMENT: &str = include_str!("../../SCHEMA.md");
    let (_, chapter) = DOCUMENT.split_once("# The doctor's facts").unwrap();
    let mut facts = facts(PENRYN.cpu());
    facts.tools.programs =
        vec![Program { name: "Bochs", package: "bochs", needed: true, path: None, version: None }];
    facts.cpu.svm = RYZEN.cpu().svm;
    let json = serde_json::to_value(facts).unwrap();
    let mut objects = vec![&json];
    while let Some(value) = objects.pop() {
        for (key, value) in value.as_object().into_iter().flatten() {
            assert!(chapter.contains(&format!("`{key}`")), "{key} is not documented");
            objects.push(value);
        }
        objects.extend(value.as_array().into_iter().flatten());
    }
}

#[test]
fn facts_are_json() {
    let json = serde_json::to_value(facts(PENRYN.cpu())).unwrap();
    assert_eq!((&json["schema"], &json["version"]), (&"umbra.doctor".into(), &1.into()));
    assert_eq!(json["cpu"]["vmx"]["msrs"]["cr3_targets"], 4);
    assert_eq!(json["cpu"]["reserved_address_bits"], serde_json::json!([40, 51]));
    assert_eq!(json["obstacle"], serde_json::Value::Null);
}
