//! One source of many mutants: each becomes a branch on its number.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use umbra_sabotage::{Broken, Change, Woven, branch};

use super::list::{Genre, Mutant};

/// The text of a file with one mutant in it, as cargo-mutants would make it.
///
/// # Errors
/// The mutant is none of this text.
pub fn alone(text: &str, mutant: &Mutant) -> Result<String> {
    let span = bytes(text, mutant)?;
    Ok(format!("{}{}{}", &text[..span.start], mutant.replacement, &text[span.end..]))
}

/// The text of a file with all of these mutants in it, each with its number.
///
/// # Errors
/// The text is no Rust, or a mutant is none of it.
pub fn together(text: &str, mutants: &[(u32, &Mutant)]) -> Result<Woven> {
    let mut places = Places::default();
    places.visit_file(&syn::parse_file(text)?);
    let mut changes = Vec::new();
    for &(number, mutant) in mutants {
        let span = bytes(text, mutant)?;
        let range = match mutant.genre {
            Genre::FnValue | Genre::MatchArmGuard => span.clone(),
            genre => {
                let place = places.ranges.get(&(genre, span.start));
                place.with_context(|| format!("the place of {}", mutant.name))?.clone()
            }
        };
        let broken = match mutant.genre {
            Genre::MatchArm => Broken::Unmatched,
            _ => {
                let (before, after) = (&text[range.start..span.start], &text[span.end..range.end]);
                Broken::Code(format!("{before}{}{after}", mutant.replacement))
            }
        };
        changes.push(Change { number, name: mutant.name.clone(), range, broken });
    }
    // A branch needs the environment, which no constant can read.
    let mut text = text.to_owned();
    for (keyword, function) in places.constant {
        if changes.iter().any(|change| function.contains(&change.range.start)) {
            text.replace_range(keyword.clone(), &" ".repeat(keyword.len()));
        }
    }
    branch(&text, changes)
}

/// The bytes that a mutant replaces.
fn bytes(text: &str, mutant: &Mutant) -> Result<Range<usize>> {
    let [start, end] = [mutant.span.start, mutant.span.end].map(|place| place.byte(text));
    start.zip(end).map(|(start, end)| start..end).context("a mutant behind the end of its file")
}

/// Where the branches of a file go.
#[derive(Default)]
struct Places {
    /// What to choose between, for a mutant of this genre that begins at this byte.
    ranges: BTreeMap<(Genre, usize), Range<usize>>,
    /// `const` before functions, and these functions.
    constant: Vec<(Range<usize>, Range<usize>)>,
    /// The outermost of the operators with two operands that are being visited.
    outermost: Option<Range<usize>>,
}

impl Places {
    fn add(&mut self, genre: Genre, mutant: &impl Spanned, range: Range<usize>) {
        self.ranges.insert((genre, mutant.span().byte_range().start), range);
    }

    fn function(&mut self, signature: &syn::Signature, function: &impl Spanned) {
        if let Some(keyword) = signature.constness {
            self.constant.push((keyword.span().byte_range(), function.span().byte_range()));
        }
    }
}

impl<'ast> Visit<'ast> for Places {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(&function.sig, function);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(&function.sig, function);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        match expression {
            // Another operator may bind its operands to others: so the branch is around all.
            syn::Expr::Binary(binary) => {
                let outside = self.outermost.clone();
                let range = outside.clone().unwrap_or_else(|| binary.span().byte_range());
                self.outermost = Some(range.clone());
                self.add(Genre::BinaryOperator, &binary.op, range);
                self.visit_expr(&binary.left);
                self.visit_expr(&binary.right);
                self.outermost = outside;
            }
            _ => {
                let outside = self.outermost.take();
                visit::visit_expr(self, expression);
                self.outermost = outside;
            }
        }
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        self.add(Genre::UnaryOperator, &unary.op, unary.span().byte_range());
        visit::visit_expr_unary(self, unary);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.add(Genre::MatchArm, arm, arm.pat.span().byte_range());
        visit::visit_arm(self, arm);
    }

    fn visit_expr_struct(&mut self, structure: &'ast syn::ExprStruct) {
        for field in &structure.fields {
            self.add(Genre::StructField, field, structure.span().byte_range());
        }
        visit::visit_expr_struct(self, structure);
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::mutant;
    use super::*;

    /// The text with these mutants, each a genre, what it replaces and by what.
    fn woven(text: &str, mutants: &[(Genre, &str, &str)]) -> String {
        let mutants: Vec<Mutant> = mutants
            .iter()
            .map(|&(genre, replaced, replacement)| {
                let start = text.find(replaced).unwrap() + 1;
                mutant("m", genre, [start, start + replaced.len()], replacement)
            })
            .collect();
        let numbered: Vec<(u32, &Mutant)> = (1..).zip(&mutants).collect();
        let woven = together(text, &numbered).unwrap().text;
        woven.replace("crate::sabotage_switch::", "")
    }

    #[test]
    fn an_operator_may_bind_its_operands_anew() {
        assert_eq!(
            woven("fn f() { a - b + c }", &[(Genre::BinaryOperator, "+", "*")]),
            "fn f() { (if breaks(1) { a - b * c } else { a - b + c }) }"
        );
        assert_eq!(
            woven("fn f() { g(a && !b) }", &[(Genre::UnaryOperator, "!", "")]),
            "fn f() { g(a && (if breaks(1) { b } else { !b })) }"
        );
    }

    #[test]
    fn bodies_arms_guards_and_fields_become_branches() {
        assert_eq!(
            woven("const fn f() -> u8 { 3 }", &[(Genre::FnValue, "3", "0")]),
            "      fn f() -> u8 { (if breaks(1) { 0 } else { 3 }) }"
        );
        assert_eq!(
            woven("fn f() { match a { B => c, _ => d } }", &[(Genre::MatchArm, "B => c,", "")]),
            "fn f() { match a { B if !breaks(1) => c, _ => d } }"
        );
        assert_eq!(
            woven("fn f() { match a { B if g => c } }", &[(Genre::MatchArmGuard, "g", "true")]),
            "fn f() { match a { B if (if breaks(1) { true } else { g }) => c } }"
        );
        assert_eq!(
            woven("fn f() { (S { a: 1, ..s }) }", &[(Genre::StructField, "a: 1,", "")]),
            "fn f() { (if breaks(1) { S {  ..s } } else { S { a: 1, ..s } }) }"
        );
    }

    #[test]
    fn one_alone_is_what_cargo_mutants_makes() {
        let mutant = mutant("m", Genre::BinaryOperator, [12, 13], "-");
        assert_eq!(alone("fn f() { a + b }", &mutant).unwrap(), "fn f() { a - b }");
    }
}
