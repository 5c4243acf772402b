//! Path templates of `google.api.http`: literals and single-segment variables, with an optional `:verb` at the end
//! (`/v1/jobs/{id}:pause`). Variables of several segments (`{name=a/*}`, `**`) are refused at start: no route needs them,
//! and a template that is half understood would answer the wrong call.

use std::cmp::Ordering;

use super::text;

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    segments: Vec<Segment>,
    verb: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// Path of the request field that the segment is bound to.
    Variable(String),
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or_else(|| format!("the path {text} does not begin with /"))?;
        let mut segments = Vec::new();
        let mut verb = None;
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            let (segment, after) = parse_segment(part).ok_or_else(|| format!("cannot read {part:?} in {text}"))?;
            if let Some(after) = after {
                if parts.peek().is_some() {
                    return Err(format!("the verb {after:?} is not at the end of {text}"));
                }
                verb = Some(after);
            }
            segments.push(segment);
        }
        Ok(Self { segments, verb })
    }

    /// The values of the variables, in order, if `path` (as it came, percent-encoded) is of this form.
    pub(crate) fn matches(&self, path: &str) -> Option<Vec<String>> {
        let mut rest = path.strip_prefix('/')?;
        if let Some(verb) = &self.verb {
            rest = rest.strip_suffix(verb.as_str())?.strip_suffix(':')?;
        }
        let mut values = Vec::new();
        let mut parts = rest.split('/');
        for segment in &self.segments {
            let part = text::percent_decoded(parts.next()?, false)?;
            match segment {
                Segment::Literal(literal) if *literal == part => {}
                Segment::Variable(_) if !part.is_empty() => values.push(part),
                Segment::Literal(_) | Segment::Variable(_) => return None,
            }
        }
        parts.next().is_none().then_some(values)
    }

    /// Field paths of the variables, in order.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Variable(field) => Some(field.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// Which of two templates is asked first: the one with a literal (or a verb) where the other has a variable.
    pub(crate) fn precedence(&self, other: &Self) -> Ordering {
        let shape = |template: &Self| {
            let variables: Vec<bool> = template.segments.iter().map(|s| matches!(s, Segment::Variable(_))).collect();
            (template.verb.is_none(), variables)
        };
        shape(self).cmp(&shape(other))
    }

    /// Whether some path matches both and neither is asked first.
    pub(crate) fn is_ambiguous_with(&self, other: &Self) -> bool {
        let same = |(a, b): (&Segment, &Segment)| match (a, b) {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            (Segment::Variable(_), Segment::Variable(_)) => true,
            _ => false,
        };
        self.verb == other.verb
            && self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(same)
    }
}

/// A segment, and the verb after it.
fn parse_segment(part: &str) -> Option<(Segment, Option<String>)> {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if let Some(inner) = part.strip_prefix('{') {
        let (field, after) = inner.split_once('}')?;
        let field = field.strip_suffix("=*").unwrap_or(field);
        let verb = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').filter(|verb| word(verb))?.to_owned()),
        };
        return word(field).then(|| (Segment::Variable(field.to_owned()), verb));
    }
    let (literal, verb) = match part.split_once(':') {
        Some((literal, verb)) => (literal, Some(verb)),
        None => (part, None),
    };
    let right = word(literal) && verb.is_none_or(word);
    right.then(|| (Segment::Literal(literal.to_owned()), verb.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(template: &str, path: &str) -> Option<Vec<String>> {
        Template::parse(template).unwrap().matches(path)
    }

    #[test]
    fn a_path_binds_its_variables() {
        assert_eq!(matched("/v1/jobs/{id}", "/v1/jobs/7"), Some(vec!["7".into()]));
        assert_eq!(
            matched("/v1/jobs/{id=*}/runs/{run.id}", "/v1/jobs/a%2Fb/runs/2"),
            Some(vec!["a/b".into(), "2".into()])
        );
        assert_eq!(matched("/v1/jobs/{id}:pause", "/v1/jobs/7:pause"), Some(vec!["7".into()]));
        for path in
            ["/v1/jobs", "/v1/jobs/", "/v1/jobs/7/", "/v1/jobs/7/x", "v1/jobs/7", "/v1/jobs/%ff", "/v1/jobs/%2", ""]
        {
            assert_eq!(matched("/v1/jobs/{id}", path), None, "{path}");
        }
        assert_eq!(matched("/v1/jobs/{id}:pause", "/v1/jobs/7:resume"), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["v1/x", "/v1/{a=b/*}", "/v1/{a", "/v1/**", "/v1/{}", "/v1/{a}x", "/v1/a:b/c", "/v1//x"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn literals_are_asked_before_variables() {
        let parse = |text| Template::parse(text).unwrap();
        let (literal, variable) = (parse("/jobs/cron"), parse("/jobs/{id}"));
        assert_eq!(literal.precedence(&variable), Ordering::Less);
        assert!(!literal.is_ambiguous_with(&variable));
        assert!(variable.is_ambiguous_with(&parse("/jobs/{other}")));
    }
}
