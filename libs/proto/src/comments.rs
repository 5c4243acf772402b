//! The comments of the protos, which are the help of the commands and the descriptions of the OpenAPI document: who documents a
//! field there has documented its flag and its schema.

use std::collections::HashMap;

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor,
};

/// What stands above each element, by its file and its path in it.
#[derive(Debug)]
pub struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    /// All of them.
    pub fn of(pool: &DescriptorPool) -> Self {
        let mut comments = HashMap::new();
        for file in pool.files() {
            let Some(info) = &file.file_descriptor_proto().source_code_info else { continue };
            for location in &info.location {
                if let Some(text) = &location.leading_comments {
                    comments.insert((file.name().to_owned(), location.path.clone()), flowing(text));
                }
            }
        }
        Self(comments)
    }

    fn at(&self, file: &FileDescriptor, path: &[i32]) -> &str {
        self.0.get(&(file.name().to_owned(), path.to_vec())).map_or("", String::as_str)
    }

    /// Of a service.
    pub fn service(&self, service: &ServiceDescriptor) -> &str {
        self.at(&service.parent_file(), service.path())
    }

    /// Of a call.
    pub fn method(&self, method: &MethodDescriptor) -> &str {
        self.at(&method.parent_file(), method.path())
    }

    /// Of a field.
    pub fn field(&self, field: &FieldDescriptor) -> &str {
        self.at(&field.parent_message().parent_file(), field.path())
    }

    /// Of a message.
    pub fn message(&self, message: &MessageDescriptor) -> &str {
        self.at(&message.parent_file(), message.path())
    }

    /// Of an enum.
    pub fn of_enum(&self, of: &EnumDescriptor) -> &str {
        self.at(&of.parent_file(), of.path())
    }

    /// Of the value at `place` of an enum: field 2 of its descriptor holds the values.
    pub fn value(&self, of: &EnumDescriptor, place: usize) -> &str {
        let Ok(place) = i32::try_from(place) else { return "" };
        self.at(&of.parent_file(), &[of.path(), &[2, place]].concat())
    }
}

/// Lines as paragraphs: where a line ends is the proto's affair, the terminal has a width of its own.
fn flowing(text: &str) -> String {
    let mut flowing = String::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() {
            if !flowing.is_empty() && !flowing.ends_with('\n') {
                flowing.push_str("\n\n");
            }
            continue;
        }
        if !flowing.is_empty() && !flowing.ends_with('\n') {
            flowing.push(' ');
        }
        flowing.push_str(line);
    }
    flowing.trim_end().to_owned()
}

/// For a line of help: without its full stop, as clap has it.
pub fn first_sentence(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let sentence = paragraph.split_once(". ").map_or(paragraph, |(first, _)| first);
    sentence.trim_end_matches('.').to_owned()
}

/// What something does, without how: for lists of commands.
pub fn first_clause(text: &str) -> String {
    let sentence = first_sentence(text);
    sentence.split_once(": ").map_or(sentence.as_str(), |(clause, _)| clause).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors;

    #[test]
    fn what_stands_in_the_protos_is_found() {
        let pool = descriptors();
        let comments = Comments::of(&pool);
        let job = pool.get_message_by_name("carillon.v1.Job").unwrap();
        let field = job.get_field_by_name("max_retries").unwrap();
        assert_eq!(comments.field(&field), "Attempts after the first one failed: 0 to 100. Default: 3.");
        assert_eq!(first_sentence(comments.field(&field)), "Attempts after the first one failed: 0 to 100");
        assert_eq!(first_clause("Deletes a job: it fires no more. Its record stays."), "Deletes a job");
        let priority = pool.get_enum_by_name("carillon.v1.Priority").unwrap();
        assert_eq!(comments.value(&priority, 4), "First.");
        let service = pool.get_service_by_name("carillon.v1.JobService").unwrap();
        assert!(comments.service(&service).contains("clock.\n\nEvery call"), "{}", comments.service(&service));
        let method = service.methods().find(|method| method.name() == "ListJobs").unwrap();
        assert_eq!(
            first_sentence(comments.method(&method)),
            "Lists jobs, newest first unless `order_by` says otherwise"
        );
    }
}
