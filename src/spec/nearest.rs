//! "Did you mean": the known word nearest to a misspelt one.

/// Longest word compared: distances of longer texts cost time and help nobody.
const WORD_MAX: usize = 64;

/// The nearest of `words` by edit distance, if it is near enough to be meant: a third of the letters,
/// letter case being free.
pub fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if text.len() > WORD_MAX {
        return None;
    }
    words
        .map(|word| (distance(&text.to_lowercase(), &word.to_lowercase()), word))
        .filter(|(d, word)| *d <= word.chars().count().max(3) / 3)
        .min_by_key(|(d, _)| *d)
        .map(|(_, word)| word)
}

/// Edit distance with swaps of neighbours (optimal string alignment), in three rows.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (above[j] + 1).min(row[j - 1] + 1).min(above[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_find_their_word_and_strangers_find_none() {
        let words = || ["interval", "timeout", "virtualIPs", "on", "onFailure"].into_iter();
        assert_eq!(nearest("intervall", words()), Some("interval"));
        assert_eq!(nearest("tiemout", words()), Some("timeout"));
        assert_eq!(nearest("virtualIps", words()), Some("virtualIPs"));
        assert_eq!(nearest("onfail", words()), Some("onFailure"));
        assert_eq!(nearest("banana", words()), None);
        assert_eq!(nearest("", words()), None);
    }
}
