//! What callers ask for.

/// Amounts of one or more limits, admitted whole or not at all, at one instant.
///
/// A request is checked when it is used: it has 1 to [`MAX_TAKES`] limits, each once, each with an
/// amount of at least 1.
///
/// ```
/// use quotalite::Request;
///
/// let ask = Request::new().take("openai:requests", 1).take("openai:tokens", 1_800);
/// assert_eq!(ask, Request::from([("openai:requests", 1), ("openai:tokens", 1_800)]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    takes: Vec<(String, u64)>,
    id: Option<String>,
}

impl<K: Into<String>, const N: usize> From<[(K, u64); N]> for Request {
    fn from(takes: [(K, u64); N]) -> Self {
        takes
            .into_iter()
            .fold(Self::new(), |request, (key, amount)| {
                request.take(key, amount)
            })
    }
}

/// How many bytes the id of a permit can have.
pub const MAX_ID_BYTES: usize = 128;

/// How many things one call can do in one transaction.
pub const MAX_BATCH: usize = 1_024;

/// How many limits one request can name.
pub const MAX_TAKES: usize = 32;

impl Request {
    /// A request for nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            takes: Vec::new(),
            id: None,
        }
    }

    /// Names the work that this is for, by an id of the caller's own: 1 to [`MAX_ID_BYTES`] bytes without
    /// control characters, never used for anything else. Acquiring under an id is idempotent: who asks
    /// again for the same under the same id, in whatever process and after whatever crash, gets the permit that was
    /// granted before, and nothing is charged twice.
    ///
    /// The permit then says that it [is resumed](crate::Permit::is_resumed), or that it
    /// [has ended](crate::Permit::has_ended). What was [cancelled](crate::Permit::cancel) is charged anew. Where
    /// the process that held it has died, its slots are taken again, unless they had timed out before.
    ///
    /// An id is no lock: while the permit is open and held, others who ask under its id share it. Its slots come
    /// back when the one drops it that was granted it first; a booking that somebody shares is not given
    /// back by dropping it.
    ///
    /// An id is remembered for as long as its permit is open, and for an hour after that.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds an amount of the limit `key`.
    #[must_use]
    pub fn take(mut self, key: impl Into<String>, amount: u64) -> Self {
        self.takes.push((key.into(), amount));
        self
    }

    /// The keys and amounts, in the order in which they were added.
    #[must_use]
    pub fn takes(&self) -> impl ExactSizeIterator<Item = (&str, u64)> {
        self.takes
            .iter()
            .map(|(key, amount)| (key.as_str(), *amount))
    }
}

/// What can be asked with: a key (for an amount of one), a key and an amount, or a reference to a
/// [`Request`].
///
/// It borrows, so that asking for one key allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a>(Takes<'a>, Option<&'a str>);

#[derive(Clone, Copy, Debug)]
enum Takes<'a> {
    One(&'a str, u64),
    Many(&'a [(String, u64)]),
}

impl<'a> Ask<'a> {
    /// The id, if it has one.
    pub(crate) const fn id(&self) -> Option<&'a str> {
        self.1
    }

    /// The same once more, as a request of its own.
    #[cfg(feature = "retry")]
    pub(crate) const fn without_id(self) -> Self {
        Self(self.0, None)
    }

    pub(crate) fn to_request(self) -> Request {
        Request {
            takes: self
                .iter()
                .map(|(key, amount)| (key.to_owned(), amount))
                .collect(),
            id: self.id().map(ToOwned::to_owned),
        }
    }

    /// How many limits are named.
    pub(crate) const fn len(&self) -> usize {
        match self.0 {
            Takes::One(..) => 1,
            Takes::Many(takes) => takes.len(),
        }
    }

    /// The key and amount at a position below `len`.
    pub(crate) fn get(&self, position: usize) -> Option<(&'a str, u64)> {
        match self.0 {
            Takes::One(key, amount) => (position == 0).then_some((key, amount)),
            Takes::Many(takes) => takes
                .get(position)
                .map(|(key, amount)| (key.as_str(), *amount)),
        }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a str, u64)> {
        (0..self.len()).filter_map(move |position| self.get(position))
    }
}

impl<'a> From<&'a str> for Ask<'a> {
    fn from(key: &'a str) -> Self {
        Self(Takes::One(key, 1), None)
    }
}

impl<'a> From<&'a String> for Ask<'a> {
    fn from(key: &'a String) -> Self {
        Self(Takes::One(key, 1), None)
    }
}

impl<'a> From<(&'a str, u64)> for Ask<'a> {
    fn from((key, amount): (&'a str, u64)) -> Self {
        Self(Takes::One(key, amount), None)
    }
}

impl<'a> From<&'a Request> for Ask<'a> {
    fn from(request: &'a Request) -> Self {
        Self(Takes::Many(&request.takes), request.id.as_deref())
    }
}
