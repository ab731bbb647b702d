//! What would change: a line diff of two documents in their normal form.

/// Lines with a leading `-` (only before) or `+` (only after), each under the nearest unchanged line above it.
#[must_use]
pub fn diff(before: &str, after: &str) -> Vec<String> {
    let before: Vec<&str> = before.lines().collect();
    let after: Vec<&str> = after.lines().collect();
    // Longest common subsequence after the common ends are cut off; inventories change in few places.
    let head = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
    let rest = before.len().min(after.len()).saturating_sub(head);
    let tail = before
        .iter()
        .rev()
        .zip(after.iter().rev())
        .take(rest)
        .take_while(|(one, other)| one == other)
        .count();
    let old = &before[head..before.len() - tail];
    let new = &after[head..after.len() - tail];
    let mut lines = Vec::new();
    if old.is_empty() && new.is_empty() {
        return lines;
    }
    if let Some(context) = head.checked_sub(1).and_then(|above| before.get(above)) {
        lines.push(format!("  {context}"));
    }
    // Beyond this the table would cost more than the diff is worth: show it as one block.
    if old.len().saturating_mul(new.len()) > 4_000_000 {
        lines.extend(old.iter().map(|line| format!("- {line}")));
        lines.extend(new.iter().map(|line| format!("+ {line}")));
        return lines;
    }
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push(format!("  {}", old[i]));
            i += 1;
            j += 1;
        } else if j >= new.len()
            || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(format!("- {}", old[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::diff;

    #[test]
    fn equal_documents_have_no_diff() {
        assert!(diff("a: 1\nb: 2\n", "a: 1\nb: 2\n").is_empty());
    }

    #[test]
    fn a_changed_line_shows_before_and_after_below_its_context() {
        assert_eq!(diff("a: 1\nb: 2\nc: 3\n", "a: 1\nb: 4\nc: 3\n"), ["  a: 1", "- b: 2", "+ b: 4"]);
    }

    #[test]
    fn added_and_removed_ends_are_shown() {
        assert_eq!(diff("a\n", "a\nb\n"), ["  a", "+ b"]);
        assert_eq!(diff("a\nb\n", "b\n"), ["- a"]);
    }
}
