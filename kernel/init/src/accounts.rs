//! The one line of `/etc/passwd` that matters here: the user of process 1.

use std::{fs, path::Path};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: Vec<u8>,
    pub(crate) home: Vec<u8>,
    /// The login shell, where one is named.
    pub(crate) shell: Option<Vec<u8>>,
}

/// The first account with user id 0, or what that is everywhere.
pub(crate) fn superuser() -> Account {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let mut account = find(&passwd).unwrap_or(Account {
        name: b"root".to_vec(),
        home: b"/root".to_vec(),
        shell: None,
    });
    if !Path::new("/root").is_dir() && account.home == b"/root" {
        account.home = b"/".to_vec();
    }
    account
}

fn find(passwd: &[u8]) -> Option<Account> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let [name, _, b"0", _, _, home, shell] = fields[..] else {
            return None;
        };
        Some(Account {
            name: name.to_vec(),
            home: home.to_vec(),
            shell: (!shell.is_empty()).then(|| shell.to_vec()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_user_id_zero_counts() {
        let passwd =
            b"bad line\nbin:x:2:2::/bin:/bin/no\nroot:x:0:0:root:/root:/bin/zsh\ntoor:x:0:0::/:\n";
        let account = find(passwd).unwrap();
        assert_eq!(account.name, b"root");
        assert_eq!(account.shell.as_deref(), Some(&b"/bin/zsh"[..]));
    }

    #[test]
    fn an_empty_shell_is_none() {
        assert_eq!(find(b"r:x:0:0::/:\n").unwrap().shell, None);
        assert_eq!(find(b""), None);
    }
}
