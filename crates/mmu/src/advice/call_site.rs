//! The place in the guest's code that writes a table.

use umbra_paging::{ENTRIES, Gpa, Gva, Mode, PAGE_SIZE};

use crate::derive::View;
use crate::fault::WalkCache;
use crate::format::{Role, State};
use crate::policy::{CallSite, FaultContext};
use crate::roots::Roots;
use crate::tables::{GROUP, Slot};
use crate::{Backing, Env, VcpuId};

/// How much of the stack is searched for return addresses: what a function saves, and a little
/// more.
const STACK_WORDS: usize = 8;

/// The site of a write to a table at `gpa`.
pub(crate) fn call_site<E: Env>(
    view: View<'_, E>,
    roots: &Roots,
    walks: &mut WalkCache,
    vcpu: VcpuId,
    context: &FaultContext,
    gpa: Gpa,
) -> CallSite {
    CallSite {
        rip: context.rip.raw(),
        callers: callers(view, roots, walks, vcpu, context),
        same_presence: is_followed_by_same_presence(view, gpa),
    }
}

/// [`CallSite::same_presence`] of the entry at `gpa`, as far as the first shadow of its table
/// tells.
fn is_followed_by_same_presence<E: Env>(view: View<'_, E>, gpa: Gpa) -> bool {
    let (tables, first) = (view.tables(), gpa.page_offset() as usize);
    let is_not_present =
        |frame, index| tables.state(view.read(Slot::new(frame, index))) == State::NotPresent;
    let same_presence = view.shadows(gpa.gfn()).find_map(|frame| {
        let Role::Guest { level, format, .. } = tables.key(frame).role else { return None };
        let index = format.indexes(level, first..first + 1);
        let next = index.end;
        (!index.is_empty()).then(|| {
            next < ENTRIES && is_not_present(frame, index.start) == is_not_present(frame, next)
        })
    });
    same_presence.unwrap_or(false)
}

/// How an instruction was reached, as far as its stack tells: the first return addresses there.
/// They lie in the same 2 GiB of code as the instruction, or 16 MiB if the guest is not in long
/// mode: 32-bit kernels have their data next to their code. (What is the address of a page is
/// none.)
fn callers<E: Env>(
    view: View<'_, E>,
    roots: &Roots,
    walks: &mut WalkCache,
    vcpu: VcpuId,
    context: &FaultContext,
) -> u64 {
    let env = view.env();
    let long = roots.paging(vcpu).mode == Mode::Long4;
    let top = context.rsp.filter(|rsp| rsp.raw() % (if long { 8 } else { 4 }) == 0);
    let Some(top) = top.and_then(|rsp| walks.mapped(view, roots, vcpu, rsp)) else { return 0 };
    // What an unsync table says now need not be what is mapped.
    if view.guest().has_unsync_above_leaves() || env.backing(top.gfn()) == Backing::None {
        return 0;
    }
    if !long {
        return callers32(env, context.rip, top);
    }
    let is_code = |&&word: &&u64| (word ^ context.rip.raw()) >> 31 == 0 && word % PAGE_SIZE != 0;
    let (mut callers, mut found) = (0u64, 0);
    let first = top.page_offset() as usize / 8;
    let end = (first + STACK_WORDS).min(ENTRIES);
    let mut at = first;
    while at < end {
        let group = env.read_entries(top.gfn(), at / GROUP * GROUP);
        let until = (at / GROUP * GROUP + GROUP).min(end);
        for word in group[at % GROUP..][..until - at].iter().filter(is_code) {
            callers = callers.rotate_left(32) ^ word;
            found += 1;
            if found == 2 {
                return callers;
            }
        }
        at = until;
    }
    callers
}

/// [`callers`] on a stack of 4-byte words.
fn callers32(env: &impl Env, rip: Gva, top: Gpa) -> u64 {
    let is_code = |word: &u64| (word ^ rip.raw()) >> 24 == 0 && word % PAGE_SIZE != 0;
    let first = top.page_offset() as usize / 4;
    let end = (first + 2 * STACK_WORDS).min(2 * ENTRIES);
    let word = |at: usize| {
        let both = env.read_entry(top.gfn().entry(at / 2));
        both >> (32 * (at % 2)) & 0xffff_ffff
    };
    (first..end).map(word).filter(is_code).take(2).fold(0, |callers, word| callers << 32 | word)
}
