//! A folder of recipes that each reached something new, named by their content: copying such
//! folders together merges them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use umbra_reference::coverage::Coverage;
use umbra_reference::recipe::Recipe;

/// How the names of kept recipes end.
const KEPT: &str = "recipe";

/// The recipes of a campaign, and what they reach.
#[derive(Default)]
pub struct Corpus {
    recipes: Vec<Recipe>,
    /// Keys of moments that some recipe reaches.
    reached: BTreeSet<u64>,
    folder: Option<PathBuf>,
}

impl Corpus {
    /// A corpus that is kept in this folder, which is made if it is not there; empty so far.
    pub fn in_folder(folder: &Path) -> Result<Corpus> {
        fs::create_dir_all(folder)
            .with_context(|| format!("making the corpus {}", folder.display()))?;
        Ok(Corpus { folder: Some(folder.to_path_buf()), ..Corpus::default() })
    }

    /// The recipes.
    pub fn recipes(&self) -> &[Recipe] {
        &self.recipes
    }

    /// How many moments they reach.
    pub fn reached(&self) -> usize {
        self.reached.len()
    }

    /// Takes in a recipe that met `coverage` if it reached something new: as far as it takes to
    /// reach that.
    pub fn offer(&mut self, recipe: &Recipe, coverage: &Coverage) -> Result<bool> {
        let new = coverage.moments().iter().filter(|(key, _)| !self.reached.contains(key));
        let Some(last) = new.map(|(_, &step)| step).max() else { return Ok(false) };
        self.reached.extend(coverage.moments().keys());
        let mut recipe = recipe.clone();
        recipe.words.truncate(last + 1);
        if let Some(folder) = &self.folder {
            keep(folder, &recipe, KEPT)?;
        }
        self.recipes.push(recipe);
        Ok(true)
    }

    /// Removes the files in the folder that are none of these recipes.
    pub fn prune(&self) -> Result<usize> {
        let Some(folder) = &self.folder else { return Ok(0) };
        let ours: BTreeSet<String> = self.recipes.iter().map(|recipe| name(recipe, KEPT)).collect();
        let mut removed = 0;
        for file in files(folder)? {
            if file.file_name().is_none_or(|name| !ours.contains(&*name.to_string_lossy())) {
                fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Reads the recipes of a folder, the shortest first.
pub fn read(folder: &Path) -> Result<Vec<Recipe>> {
    let mut recipes =
        files(folder)?.iter().map(|file| read_one(file)).collect::<Result<Vec<_>>>()?;
    recipes.sort_by_key(|recipe| recipe.words.len());
    Ok(recipes)
}

/// Reads one recipe.
pub fn read_one(file: &Path) -> Result<Recipe> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Recipe::from_bytes(&bytes).with_context(|| format!("{} is damaged; remove it", file.display()))
}

/// Writes a recipe under the name of its content, whole or not at all.
pub fn keep(folder: &Path, recipe: &Recipe, extension: &str) -> Result<PathBuf> {
    let file = folder.join(name(recipe, extension));
    let unfinished = file.with_extension("unfinished");
    fs::write(&unfinished, recipe.to_bytes())
        .and_then(|()| fs::rename(&unfinished, &file))
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn name(recipe: &Recipe, extension: &str) -> String {
    let digest = Sha256::digest(recipe.to_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.{extension}")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("reading the corpus {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|extension| extension == KEPT) {
            files.push(path);
        }
    }
    // The same order on every machine.
    files.sort();
    Ok(files)
}
