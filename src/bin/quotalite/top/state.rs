//! What `top` shows, and what keys do to it. It knows no terminal.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::detail::Detail;
use crate::status::{Standing, Status};

/// So many looks are remembered of each limit.
pub(super) const REMEMBERED: usize = 60;

/// What one look has seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: Status,
    pub(super) detail: Option<Detail>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Key,
    Used,
    Waiting,
}

impl Sort {
    const fn next(self) -> Self {
        match self {
            Self::Key => Self::Used,
            Self::Used => Self::Waiting,
            Self::Waiting => Self::Key,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Used => "used",
            Self::Waiting => "waiting",
        }
    }
}

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    LookAgain,
    Quit,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) file: String,
    pub(super) seen: Option<Seen>,
    /// Why the last look has failed, if it has.
    pub(super) error: Option<String>,
    pub(super) sort: Sort,
    pub(super) filter: String,
    pub(super) is_typing: bool,
    pub(super) shows_help: bool,
    is_still: bool,
    /// The limit that is looked into.
    opened: Option<String>,
    /// How many lines of it are above what is shown.
    pub(super) scrolled: usize,
    /// How many lines fit, at the last drawing: so far goes a page.
    pub(super) page: usize,
    /// The limit that is selected: it stays so wherever it moves to.
    selected: Option<String>,
    /// How much of its tightest part each limit has used, in thousandths, look by look.
    history: BTreeMap<String, VecDeque<u16>>,
}

impl State {
    pub(super) fn new(file: String) -> Self {
        Self {
            file,
            seen: None,
            error: None,
            sort: Sort::default(),
            filter: String::new(),
            is_typing: false,
            shows_help: false,
            is_still: false,
            opened: None,
            scrolled: 0,
            page: 1,
            selected: None,
            history: BTreeMap::new(),
        }
    }

    pub(super) fn is_still(&self) -> bool {
        self.is_still
    }

    pub(super) fn opened(&self) -> Option<&str> {
        self.opened.as_deref()
    }

    /// Takes what a look has seen. What was seen before stays where one has failed.
    pub(super) fn saw(&mut self, seen: Result<Seen, String>) {
        match seen {
            Err(error) => self.error = Some(error),
            Ok(seen) => {
                self.error = None;
                self.remember(&seen.status.limits);
                if seen.detail.is_none() {
                    self.opened = None;
                }
                self.seen = Some(seen);
            }
        }
    }

    fn remember(&mut self, limits: &[Standing]) {
        let mut former = std::mem::take(&mut self.history);
        for limit in limits {
            let mut shares = former.remove(&limit.key).unwrap_or_default();
            if shares.len() == REMEMBERED {
                shares.pop_front();
            }
            shares.push_back(limit.used_thousandths());
            self.history.insert(limit.key.clone(), shares);
        }
    }

    /// What a limit has used, look by look, in thousandths.
    pub(super) fn history(&self, key: &str) -> impl DoubleEndedIterator<Item = u16> {
        self.history.get(key).into_iter().flatten().copied()
    }

    /// The limits that are shown, in their order.
    pub(super) fn shown(&self) -> Vec<&Standing> {
        let limits = self.seen.iter().flat_map(|seen| &seen.status.limits);
        let mut shown: Vec<&Standing> = limits
            .filter(|limit| limit.key.contains(&self.filter))
            .collect();
        match self.sort {
            Sort::Key => {}
            Sort::Used => shown.sort_by_key(|limit| Reverse(limit.used_thousandths())),
            Sort::Waiting => {
                shown.sort_by_key(|limit| Reverse((limit.waiting + limit.booked, limit.permits)));
            }
        }
        shown
    }

    /// Which of them is selected: the first one, if nobody has chosen one that is still there.
    pub(super) fn selected(&self, shown: &[&Standing]) -> usize {
        let is_it = |limit: &&Standing| Some(&limit.key) == self.selected.as_ref();
        shown.iter().position(is_it).unwrap_or(0)
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Then {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Then::Quit,
                _ => Then::GoOn,
            };
        }
        if self.is_typing {
            return self.type_filter(key.code);
        }
        if self.shows_help {
            self.shows_help = false;
            return Then::GoOn;
        }
        match key.code {
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Char('?') => self.shows_help = true,
            KeyCode::Char('p') => {
                self.is_still = !self.is_still;
                return Then::LookAgain;
            }
            KeyCode::Esc | KeyCode::Backspace if self.opened.is_some() => self.opened = None,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s' | '/') | KeyCode::Enter if self.opened.is_some() => {}
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Enter => {
                let shown = self.shown();
                self.opened = shown
                    .get(self.selected(&shown))
                    .map(|limit| limit.key.clone());
                self.scrolled = 0;
                // Also where it stands still: nothing is known yet of what is looked into.
                self.is_still = false;
                return Then::LookAgain;
            }
            code => self.go(code),
        }
        Then::GoOn
    }

    fn type_filter(&mut self, code: KeyCode) -> Then {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(typed) => self.filter.push(typed),
            _ => {}
        }
        Then::GoOn
    }

    /// Scrolls what is looked into, or selects another limit.
    fn go(&mut self, code: KeyCode) {
        if self.opened.is_some() {
            // Drawing brings it back to what there is.
            self.scrolled = goes_to(code, self.scrolled, self.page).unwrap_or(self.scrolled);
            return;
        }
        let shown = self.shown();
        if let Some(at) = goes_to(code, self.selected(&shown), self.page) {
            let at = at.min(shown.len().saturating_sub(1));
            self.selected = shown.get(at).map(|limit| limit.key.clone());
        }
    }
}

/// Where a key leads to, if it leads anywhere.
fn goes_to(code: KeyCode, from: usize, page: usize) -> Option<usize> {
    match code {
        KeyCode::Up | KeyCode::Char('k') => Some(from.saturating_sub(1)),
        KeyCode::Down | KeyCode::Char('j') => Some(from.saturating_add(1)),
        KeyCode::PageUp => Some(from.saturating_sub(page)),
        KeyCode::PageDown => Some(from.saturating_add(page)),
        KeyCode::Home => Some(0),
        KeyCode::End => Some(usize::MAX),
        _ => None,
    }
}
