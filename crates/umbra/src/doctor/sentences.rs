//! What the facts mean.

use super::{Cpu, Facts, Program, Svm, Toolchains, Vmx, VmxMsrs};

/// Everything, for a person.
pub fn report(facts: &Facts) -> String {
    let mut text = String::from("CPU\n");
    line(&mut text, "model", &model(&facts.cpu));
    line(&mut text, "virtual", &hypervisor(&facts.cpu));
    line(&mut text, "VMX", &vmx(&facts.cpu));
    line(&mut text, "SVM", &svm(facts.cpu.svm.as_ref()));
    line(&mut text, "MAXPHYADDR", &facts.cpu.maxphyaddr.to_string());
    line(&mut text, "Trapping", &pending(&facts.cpu));
    text += "\nEmulators and tools\n";
    for program in &facts.tools.programs {
        line(&mut text, program.name, &presence(program));
    }
    text += "\nToolchains\n";
    toolchains(&mut text, &facts.tools.toolchains);
    text += "\n";
    text += &match &facts.obstacle {
        None => String::from(
            "`umbra run` can work here: it emulates the machine, whatever this CPU can do.\n",
        ),
        Some(sentence) => format!("`umbra run` cannot work here: {sentence}\n"),
    };
    text += &match &facts.kvm_obstacle {
        None => String::from(
            "`umbra run --machine kvm` (experimental) may work here; whether /dev/kvm opens was not tried.\n",
        ),
        Some(sentence) => format!("{sentence}\n"),
    };
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    *text += &format!("  {name:<30}{value}\n");
}

fn yes(it: bool) -> &'static str {
    if it { "yes" } else { "no" }
}

fn model(cpu: &Cpu) -> String {
    let [family, model, stepping] = cpu.signature;
    format!("{} ({}, family {family}, model {model}, stepping {stepping})", cpu.model, cpu.vendor)
}

fn hypervisor(cpu: &Cpu) -> String {
    match &cpu.hypervisor {
        None => String::from("no"),
        Some(name) => {
            format!("yes, under {name}: what CPUID says is what that hypervisor lets it say")
        }
    }
}

fn vmx(cpu: &Cpu) -> String {
    let Some(Vmx { msrs, unreadable, kernel_lists_ept }) = &cpu.vmx else {
        return format!("no: {}", cpu.no_vmx().unwrap_or_default());
    };
    let Some(VmxMsrs { enabled, true_controls, cr3_targets, ept, vpid, unrestricted_guest }) = msrs
    else {
        let ept = kernel_lists_ept.map_or("not known", yes);
        let why = unreadable.as_deref().unwrap_or_default();
        return format!("yes; EPT: {ept}; the rest is not known: {why}");
    };
    format!(
        "{}; EPT: {}; VPID: {}; unrestricted guest: {}; CR3-target values: {cr3_targets}; TRUE controls: {}",
        if *enabled { "yes" } else { "yes, but the firmware has locked it off" },
        yes(*ept),
        yes(*vpid),
        yes(*unrestricted_guest),
        yes(*true_controls),
    )
}

fn svm(svm: Option<&Svm>) -> String {
    let Some(Svm { nested_paging, next_rip, asids, disabled }) = svm else {
        return String::from("no");
    };
    let off = if *disabled == Some(true) { ", but the firmware has disabled it" } else { "" };
    format!(
        "yes{off}; NPT: {}; next RIP: {}; ASIDs: {asids}; Umbra's hypervisor uses it without NPT",
        yes(*nested_paging),
        yes(*next_rip)
    )
}

fn pending(cpu: &Cpu) -> String {
    let large = "PS=1 leaves bits 13..20 of a PDE and 13..29 of a PDPTE, and bit 7 of a PML4E";
    match cpu.reserved_address_bits {
        Some([first, last]) => format!("address bits {first}..{last} of every entry; {large}"),
        None => format!(
            "no address bit is reserved, so no PTE can be Trapping and every page fault exits; {large}"
        ),
    }
}

fn presence(program: &Program) -> String {
    let Program { package, needed, path, version, .. } = program;
    match path {
        Some(path) => {
            version.as_ref().map_or_else(|| path.clone(), |version| format!("{version}, {path}"))
        }
        None => {
            let use_of_it =
                if *needed { "needed by `umbra run`" } else { "not needed by `umbra run`" };
            format!("missing, {use_of_it}; apt-get install {package}")
        }
    }
}

fn toolchains(text: &mut String, toolchains: &Toolchains) {
    let Toolchains { active, debian, bare_metal, obstacle } = toolchains;
    line(text, "rustc", active.as_deref().unwrap_or("missing; rustup brings it"));
    line(text, "Debian's rustc", debian.as_deref().unwrap_or("missing"));
    let hypervisor = match (bare_metal, obstacle) {
        (Some("active"), _) => "rustc has the target x86_64-unknown-none",
        (Some(_), _) => "Debian's rustc builds for x86_64-unknown-none from rust-web-src",
        (None, Some(sentence)) => sentence,
        (None, None) => "not known",
    };
    line(text, "for the hypervisor", hypervisor);
}
