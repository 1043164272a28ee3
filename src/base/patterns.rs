//! Which names of a directory tree are mirrored: `exclude` and `include` of a ClusterSpec.
//!
//! A pattern is matched against the path below the mirrored directory, component by component: with a leading `/`
//! from that directory on, else anywhere below it. Within a component `*`, `?`, `[...]`, `{...}` and `\`; `**` alone
//! stands for any number of components. What matches is meant with everything below it.
//!
//! A path is not matched as a whole: each directory carries a [`Scope`], the positions in all patterns that lead
//! on from it, and a name in it is judged by that scope alone. Two directories with equal scopes treat equal
//! names below them equally, which is what a rename has to keep.

use std::fmt;

/// Components of all patterns of one list, with one more for each pattern that starts anywhere.
pub const COMPONENTS_MAX: usize = 64;

/// Why a pattern is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing, or `/`.
    #[error("it names nothing")]
    Empty,
    /// `//`, or a slash at the end.
    #[error("it has an empty component (// or a slash at the end)")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("{0:?} is never the name of anything")]
    Dots(String),
    /// A `!` in front.
    #[error("it is negated: `include` names what is mirrored")]
    Negated,
    /// `a**`.
    #[error("** must be a component of its own")]
    DoubleStar,
    /// Brackets or braces that do not close within their component.
    #[error("{0:?}: {1}")]
    Glob(String, String),
    /// Too much for one list.
    #[error(
        "all patterns of a list have at most {COMPONENTS_MAX} components, one that starts anywhere counts one more"
    )]
    TooMany,
    /// Everything below the directory.
    #[error("it matches everything")]
    Everything,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Component {
    Glob(Box<[u8]>),
    Any,
}

/// One list of patterns, laid out one after the other; a position is a bit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct List {
    components: Vec<Component>,
    /// The last component of each pattern.
    last: u64,
    /// Where patterns begin.
    start: u64,
}

/// Splits a pattern; no two `**` in a row, none at the end.
fn parse(pattern: &str) -> Result<Vec<Component>, PatternError> {
    if pattern.starts_with('!') {
        return Err(PatternError::Negated);
    }
    let anchored = pattern.strip_prefix('/');
    let body = anchored.unwrap_or(pattern);
    if body.is_empty() {
        return Err(PatternError::Empty);
    }
    let mut out = Vec::new();
    if anchored.is_none() {
        out.push(Component::Any);
    }
    for part in body.split('/') {
        match part {
            "" => return Err(PatternError::EmptyComponent),
            "." | ".." => return Err(PatternError::Dots(part.to_owned())),
            "**" if out.last() == Some(&Component::Any) => {}
            "**" => out.push(Component::Any),
            _ if part.contains("**") => return Err(PatternError::DoubleStar),
            _ if part.starts_with('!') => return Err(PatternError::Negated),
            _ => {
                let glob = |e: fast_glob::Error| PatternError::Glob(part.to_owned(), e.to_string());
                fast_glob::validate(part).map_err(glob)?;
                out.push(Component::Glob(part.as_bytes().into()));
            }
        }
    }
    // `a/**` is what is below `a`, one by one; the directory itself is not meant.
    if out.last() == Some(&Component::Any) {
        out.pop();
        out.push(Component::Glob(b"*"[..].into()));
    }
    let all = |c: &Component| matches!(c, Component::Glob(g) if g.iter().all(|b| *b == b'*'));
    if matches!(out.as_slice(), [c] | [Component::Any, c] if all(c)) {
        return Err(PatternError::Everything);
    }
    Ok(out)
}

impl List {
    fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, (usize, PatternError)> {
        let mut list = Self::default();
        for (n, pattern) in patterns.iter().enumerate() {
            let parsed = parse(pattern.as_ref()).map_err(|e| (n, e))?;
            if list.components.len() + parsed.len() > COMPONENTS_MAX {
                return Err((n, PatternError::TooMany));
            }
            list.start |= Self::enter(1 << list.components.len(), &parsed, list.components.len());
            list.components.extend(parsed);
            list.last |= 1 << (list.components.len() - 1);
        }
        Ok(list)
    }

    /// `**` may stand for nothing: who is in front of it is behind it, too. Never two in a row, never the last.
    fn enter(bit: u64, of: &[Component], base: usize) -> u64 {
        let at = bit.trailing_zeros() as usize - base;
        if of.get(at) == Some(&Component::Any) { bit | bit << 1 } else { bit }
    }

    /// The positions behind `name`, and whether a pattern ended with it.
    fn step(&self, positions: u64, name: &[u8]) -> (u64, bool) {
        let (mut next, mut hit, mut left) = (0, false, positions);
        while left != 0 {
            let bit = left & left.wrapping_neg();
            left ^= bit;
            match &self.components[bit.trailing_zeros() as usize] {
                // One more component of the many; what comes behind them has its own bit.
                Component::Any => next |= Self::enter(bit, &self.components, 0),
                Component::Glob(glob) if fast_glob::glob_match(&glob[..], name) => {
                    if self.last & bit == 0 {
                        next |= Self::enter(bit << 1, &self.components, 0);
                    } else {
                        hit = true;
                    }
                }
                Component::Glob(_) => {}
            }
        }
        (next, hit)
    }
}

/// What can still match below a directory that is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope {
    exclude: u64,
    include: u64,
    /// Everything below is included already.
    included: bool,
}

/// The patterns of one mirrored directory.
#[derive(Clone, PartialEq, Eq)]
pub struct Patterns {
    exclude: List,
    include: List,
    text: String,
}

/// Which pattern is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{list}[{index}]: {error}")]
pub struct BadPattern {
    /// `exclude` or `include`.
    pub list: &'static str,
    /// Which of them.
    pub index: usize,
    /// Why.
    pub error: PatternError,
}

impl Patterns {
    /// `None`: there are no patterns, everything is mirrored.
    ///
    /// # Errors
    /// The first malformed pattern.
    pub fn new<S: AsRef<str>>(exclude: &[S], include: &[S]) -> Result<Option<Self>, BadPattern> {
        if exclude.is_empty() && include.is_empty() {
            return Ok(None);
        }
        let list =
            |list, patterns| List::new(patterns).map_err(|(index, error)| BadPattern { list, index, error });
        let mut text = String::new();
        for (sign, patterns) in [('-', exclude), ('+', include)] {
            for pattern in patterns {
                text.push(sign);
                text.push_str(pattern.as_ref());
                text.push('\n');
            }
        }
        Ok(Some(Self { exclude: list("exclude", exclude)?, include: list("include", include)?, text }))
    }

    /// The mirrored directory itself.
    pub const fn root(&self) -> Scope {
        Scope {
            exclude: self.exclude.start,
            include: self.include.start,
            included: self.include.components.is_empty(),
        }
    }

    /// The scope of `name` in a directory of scope `parent`; `None`: it stays local, with everything below.
    pub fn child(&self, parent: Scope, name: &[u8], is_dir: bool) -> Option<Scope> {
        let (exclude, excluded) = self.exclude.step(parent.exclude, name);
        if excluded {
            return None;
        }
        let below = Scope { exclude, include: 0, included: true };
        if parent.included {
            return Some(below);
        }
        let (include, included) = self.include.step(parent.include, name);
        if included {
            return Some(below);
        }
        // A directory on the way to something that is included.
        (is_dir && include != 0).then_some(Scope { exclude, include, included: false })
    }

    /// The scope of the directory at `path` below the root; `None`: it is local.
    pub fn directory<N: AsRef<[u8]>>(&self, path: &[N]) -> Option<Scope> {
        path.iter().try_fold(self.root(), |scope, name| self.child(scope, name.as_ref(), true))
    }

    /// Is the object at `path` below the root mirrored?
    pub fn mirrors<N: AsRef<[u8]>>(&self, path: &[N], is_dir: bool) -> bool {
        let Some((name, parents)) = path.split_last() else { return true };
        self.directory(parents).is_some_and(|scope| self.child(scope, name.as_ref(), is_dir).is_some())
    }

    /// The patterns as they stand in the spec, a line each: equal texts, equal patterns.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Patterns").field(&self.text).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn patterns(exclude: &[&str], include: &[&str]) -> Patterns {
        Patterns::new(exclude, include).unwrap().unwrap()
    }

    fn mirrors(patterns: &Patterns, path: &str) -> bool {
        let is_dir = path.ends_with('/');
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        patterns.mirrors(&parts, is_dir)
    }

    fn judge(exclude: &[&str], include: &[&str], yes: &[&str], no: &[&str]) {
        let patterns = patterns(exclude, include);
        for path in yes {
            assert!(mirrors(&patterns, path), "{path} is mirrored by {patterns:?}");
        }
        for path in no {
            assert!(!mirrors(&patterns, path), "{path} is local by {patterns:?}");
        }
    }

    #[test]
    fn what_is_excluded_is_excluded_with_everything_below() {
        judge(&["*.tmp"], &[], &["a", "tmp", "d/a.tmpx"], &["a.tmp", "d/e/a.tmp", "a.tmp/b/c", ".tmp"]);
        judge(&["/cache"], &[], &["d/cache", "caches"], &["cache", "cache/a/b"]);
        judge(
            &["*/pg_stat_tmp"],
            &[],
            &["pg_stat_tmp", "15/x"],
            &["main/pg_stat_tmp/a", "15/main/pg_stat_tmp"],
        );
        judge(&["/a/**/z"], &[], &["a/y", "z", "b/z"], &["a/z", "a/b/z", "a/b/c/z/q"]);
        judge(&["/a/**"], &[], &["a/", "b/a/c"], &["a/b", "a/b/c"]);
        judge(&["[ab]?"], &[], &["a", "cx", "axx"], &["ax", "d/bz"]);
        judge(&["{a,b}.o"], &[], &["c.o"], &["a.o", "d/b.o"]);
        judge(&[r"\*"], &[], &["a"], &["*", "d/*"]);
    }

    #[test]
    fn only_what_is_included_is_mirrored_and_the_way_to_it() {
        judge(
            &[],
            &["/data/keep"],
            &["data/", "data/keep", "data/keep/a/b"],
            &["data", "data/x", "other/", "keep"],
        );
        judge(&[], &["*.db"], &["a.db", "d/", "d/e/a.db", "d.db/x/y"], &["a", "d/e/a"]);
        judge(&["*.db-journal", "/x"], &["*.db*"], &["a.db", "a.db2"], &["a.db-journal", "x/a.db", "x/"]);
    }

    #[test]
    fn malformed_patterns_say_what_is_wrong() {
        let wrong = |pattern: &str| Patterns::new(&[pattern], &[]).unwrap_err().error;
        assert_eq!(wrong(""), PatternError::Empty);
        assert_eq!(wrong("/"), PatternError::Empty);
        assert_eq!(wrong("a/"), PatternError::EmptyComponent);
        assert_eq!(wrong("a//b"), PatternError::EmptyComponent);
        assert_eq!(wrong("../a"), PatternError::Dots("..".into()));
        assert_eq!(wrong("!a"), PatternError::Negated);
        assert_eq!(wrong("a**"), PatternError::DoubleStar);
        assert!(matches!(wrong("[a"), PatternError::Glob(..)));
        assert!(matches!(wrong("{a/b}"), PatternError::Glob(..)));
        for pattern in ["*", "**", "/*", "/**", "**/*"] {
            assert_eq!(wrong(pattern), PatternError::Everything, "{pattern}");
        }
        let many = ["a/b/c"; 17];
        let bad = Patterns::new(&[], &many).unwrap_err();
        assert_eq!((bad.list, bad.index, bad.error), ("include", 16, PatternError::TooMany));
        assert_eq!(Patterns::new::<&str>(&[], &[]), Ok(None));
    }

    /// Does the pattern match exactly this path? By trying everything, the other way round.
    fn whole(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), _) => (0..=path.len()).any(|n| whole(rest, &path[n..])),
            (Some((glob, rest)), Some((name, below))) => {
                fast_glob::glob_match(glob, name) && whole(rest, below)
            }
            _ => false,
        }
    }

    fn naive(pattern: &str, path: &[&str]) -> bool {
        let text = match pattern.strip_prefix('/') {
            Some(anchored) => anchored.to_owned(),
            None => format!("**/{pattern}"),
        };
        let text = text.strip_suffix("/**").map_or(text.clone(), |head| format!("{head}/**/*"));
        let parts: Vec<&str> = text.split('/').collect();
        (1..=path.len()).any(|n| whole(&parts, &path[..n]))
    }

    fn pattern() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec!["a", "b", "*", "a*", "?", "**", "[ab]"]);
        (any::<bool>(), prop::collection::vec(part, 1..5))
            .prop_map(|(anchored, parts)| format!("{}{}", if anchored { "/" } else { "" }, parts.join("/")))
    }

    proptest! {
        #[test]
        fn scopes_agree_with_whole_paths(
            exclude in prop::collection::vec(pattern(), 0..3),
            include in prop::collection::vec(pattern(), 0..3),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "c"]), 1..6),
        ) {
            let Ok(Some(patterns)) = Patterns::new(&exclude, &include) else { return Ok(()) };
            let excluded = exclude.iter().any(|p| naive(p, &path));
            let included = include.is_empty() || include.iter().any(|p| naive(p, &path));
            prop_assert_eq!(patterns.mirrors(&path, false), !excluded && included);
            // A directory that leads to something mirrored is mirrored itself.
            if !excluded && included {
                for n in 1..path.len() {
                    prop_assert!(patterns.mirrors(&path[..n], true));
                }
            }
        }

        #[test]
        fn no_text_is_too_odd(pattern in "\\PC{0,12}", name in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(Some(patterns)) = Patterns::new(&[pattern], &[]) {
                patterns.child(patterns.root(), &name, true);
            }
        }
    }
}
