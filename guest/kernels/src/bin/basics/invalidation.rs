//! INVPCID: what it drops, and which operands it refuses.

use guest_kernels::check;
use guest_kernels::entries::PAGE;
use guest_kernels::kit::access::{self, Fault};
use guest_kernels::kit::cpu;
use guest_kernels::kit::report::Report;
use guest_kernels::kit::{snippets, space};
use guest_kernels::say;
use umbra_paging::{Gva, Level, bits};

use crate::setting::Setting;

const GP: Fault = Fault::general_protection(0);

/// All four types on plain and global pages; bad types, PCIDs and addresses; 32-bit code; ring 3.
pub fn invpcid(setting: &mut Setting, report: &mut Report) {
    if !setting.cpu.invpcid {
        say!("  this CPU has no INVPCID");
        return;
    }
    let gva = space::slot(40);
    let frames = setting.pool.frames(2, 4096);
    frames.write(0, 100);
    frames.after(1).write(0, 101);
    let operand = setting.pool.frame();
    let run = |kind: u64, pcid: u64, address: u64| {
        operand.write(0, pcid);
        operand.write(1, address);
        let mut context = snippets::invpcid().kernel();
        (context.rdi, context.rsi) = (operand.address(), kind);
        access::run(&context).map(|_| ())
    };
    const ONE_ADDRESS: u64 = 0;
    const ONE_CONTEXT: u64 = 1;
    const ALL_AND_GLOBAL: u64 = 2;
    const ALL: u64 = 3;
    for round in 0..40u64 {
        for (kind, global) in [
            (ONE_ADDRESS, 0),
            (ONE_CONTEXT, 0),
            (ALL_AND_GLOBAL, 0),
            (ALL_AND_GLOBAL, bits::G),
            (ALL, 0),
        ] {
            let index = round % 2;
            let page = frames.after(index).address() | PAGE | global;
            setting.space.map(&mut setting.pool, gva, Level::L1, page);
            let outcome = run(kind, 0, gva.raw());
            let found = access::read(gva);
            check!(
                report,
                outcome.is_ok() && found == Ok(100 + index),
                "round {round}: INVPCID type {kind}, global {global:#x}: {outcome:x?}, then {found:x?}"
            );
            setting.space.map(&mut setting.pool, gva, Level::L1, 0);
            let outcome = run(kind, 0, gva.raw());
            let found = access::read(gva);
            check!(
                report,
                outcome.is_ok() && found == Err(Fault::page(0, gva.raw())),
                "round {round}: INVPCID type {kind} of a page that is gone: {outcome:x?}, then {found:x?}"
            );
        }
    }
    for (what, kind, pcid, address) in [
        ("type 4", 4, 0, 0),
        ("a large type", u64::MAX, 0, 0),
        ("a PCID of more than 12 bits", ONE_CONTEXT, 1 << 12, 0),
        ("reserved bits of the descriptor", ALL, 1 << 63, 0),
        ("an address that is not canonical", ONE_ADDRESS, 0, 1 << 47),
        ("a PCID while CR4.PCIDE is clear", ONE_CONTEXT, 1, 0),
    ] {
        let outcome = run(kind, pcid, address);
        check!(report, outcome == Err(GP), "{what}: {outcome:x?}");
    }
    // Outside 64-bit mode registers have 32 bits, whatever stands in the rest of them.
    operand.write(0, 0);
    for kind in [ALL_AND_GLOBAL, ALL, 4] {
        let mut context = snippets::invpcid_32().kernel();
        (context.rdi, context.rsi) = (1 << 40 | operand.address(), 1 << 40 | kind);
        let outcome = access::run(&context).map(|_| ());
        let expected = if kind <= ALL { Ok(()) } else { Err(GP) };
        check!(report, outcome == expected, "INVPCID type {kind} in 32-bit code: {outcome:x?}");
    }
    let nowhere = space::slot(100);
    let mut context = snippets::invpcid().kernel();
    context.rdi = nowhere.raw();
    let outcome = access::run(&context).map(|_| ());
    check!(report, outcome == Err(Fault::page(0, nowhere.raw())), "no descriptor: {outcome:x?}");
    let mut context = snippets::invpcid().user();
    context.rdi = Gva::new(space::USER_STACK - 64).raw();
    let outcome = access::run(&context).map(|_| ());
    check!(report, outcome == Err(GP), "INVPCID in ring 3: {outcome:x?}");
    cpu::flush_all();
}
