//! The document at `/admin/openapi.json` describes the server: the same routes and methods, and
//! answers of the promised shapes, to its own examples.

#![allow(clippy::unwrap_used)]

use crate::common;

use std::collections::BTreeMap;

use common::Gateway;
use common::admin::{Admin, TOKEN};
use serde_json::{Value, json};

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

fn document(admin: &Admin) -> Value {
    let (status, document) = admin.get("/admin/openapi.json");
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    document
}

/// The target of a `$ref`.
fn follow<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(target) = value["$ref"].as_str() else {
        return value;
    };
    let found = document.pointer(target.strip_prefix('#').unwrap());
    found.unwrap_or_else(|| panic!("{target} is not in the document"))
}

/// Checks a value against a schema, in the words of JSON Schema that the document uses. A word that
/// is not known here fails.
fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = follow(document, schema);
    let refuse = |why: &str| Err(format!("{why}: {value} against {schema}"));
    for (word, says) in schema.as_object().unwrap() {
        let number = || says.as_i64().unwrap();
        let holds = match word.as_str() {
            "description" | "default" => true,
            "type" => {
                let types = says.as_array().cloned().unwrap_or_else(|| vec![says.clone()]);
                types.iter().any(|name| match name.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                })
            }
            "enum" => says.as_array().unwrap().contains(value),
            "format" => {
                says == "uuid"
                    && value
                        .as_str()
                        .is_some_and(|id| id.len() == 36 && id.split('-').count() == 5)
            }
            "minimum" => value.as_i64().unwrap() >= number(),
            "maximum" => value.as_i64().unwrap() <= number(),
            "minLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() as i64 >= number()),
            "maxLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() as i64 <= number()),
            "oneOf" => {
                says.as_array()
                    .unwrap()
                    .iter()
                    .filter(|one| check(document, one, value).is_ok())
                    .count()
                    == 1
            }
            "minItems" => value.as_array().is_none_or(|items| items.len() as i64 >= number()),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as i64 <= number()),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(document, says, item)?;
                }
                true
            }
            "required" => says
                .as_array()
                .unwrap()
                .iter()
                .all(|key| value.get(key.as_str().unwrap()).is_some()),
            "properties" => {
                for (key, schema) in says.as_object().unwrap() {
                    if let Some(value) = value.get(key) {
                        check(document, schema, value)?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = schema["properties"].as_object().unwrap();
                *says == json!(false) && value.as_object().unwrap().keys().all(|key| known.contains_key(key))
            }
            other => panic!("{other} is not known here"),
        };
        if !holds {
            return refuse(word);
        }
    }
    Ok(())
}

/// Checks an answer against the document's schema of its status.
fn check_answer(document: &Value, operation: &Value, status: u16, body: &Value) {
    let response = &operation["responses"][status.to_string()];
    assert!(!response.is_null(), "{status} is not documented: {body}, {operation}");
    match follow(document, response).get("content") {
        Some(content) => check(document, &content["application/json"]["schema"], body).unwrap(),
        None => assert!(body.is_null(), "{status} has a body: {body}"),
    }
}

/// The operations of the document by path and method.
fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters");
        item.map(|(method, operation)| ((path.clone(), method.to_uppercase()), operation))
    });
    all.collect()
}

#[test]
fn the_document_has_the_routes_of_the_server() {
    let gateway = Gateway::start(&["--admin-token", TOKEN]);
    let admin = Admin::of(&gateway);
    let document = document(&admin);
    let operations = operations(&document);
    let table = shardgate::admin::ROUTES
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(move |method| (path, method)));
    let mut table: Vec<_> = table
        .map(|(path, method)| (path.to_string(), method.to_string()))
        .collect();
    table.sort_unstable();
    assert_eq!(operations.keys().cloned().collect::<Vec<_>>(), table);
    // The server itself agrees.
    for (path, _) in shardgate::admin::ROUTES {
        let target = path
            .replace("{connId}", "x")
            .replace("{userId}", "x")
            .replace("{channel}", "x");
        for method in METHODS {
            let documented = operations.contains_key(&(path.to_string(), method.to_owned()));
            if (path, method) == (&"/admin/drain", "POST") {
                continue;
            }
            let status = admin.ask(method, &target, "").0;
            assert_eq!(status != 405, documented, "{method} {target}: {status}");
        }
    }
}

#[test]
fn examples_are_of_their_schemas() {
    let gateway = Gateway::start(&["--admin-token", TOKEN]);
    let document = document(&Admin::of(&gateway));
    let mut examples = 0;
    let mut contents = Vec::new();
    for operation in operations(&document).values() {
        contents.push(&operation["requestBody"]["content"]);
        let responses = operation["responses"].as_object().unwrap();
        contents.extend(
            responses
                .values()
                .map(|response| &follow(&document, response)["content"]),
        );
    }
    for content in contents
        .into_iter()
        .filter_map(|content| content.get("application/json"))
    {
        for example in content["examples"].as_object().into_iter().flatten() {
            check(&document, &content["schema"], &example.1["value"])
                .unwrap_or_else(|why| panic!("{}: {why}", example.0));
            examples += 1;
        }
    }
    assert!(examples > 20, "{examples}");
}

#[test]
fn answers_are_as_documented() {
    let mut gateway = Gateway::start(&["--admin-token", TOKEN, "--drain-timeout", "1s"]);
    let admin = Admin::of(&gateway);
    let document = document(&admin);
    let operations = operations(&document);
    let alices: Vec<_> = (0..3).map(|_| gateway.connect("alice")).collect();
    let ids = admin.list("");
    let ask = |route: &str, method: &str, target: &str, body: &str| {
        let operation = operations[&(route.to_owned(), method.to_owned())];
        let (status, answer) = admin.ask(method, target, body);
        check_answer(&document, operation, status, &answer);
        status
    };
    let one = format!("/admin/connections/{}", ids[0].as_str().unwrap());
    let (connections, connection) = ("/admin/connections", "/admin/connections/{connId}");
    let (user, of_user) = ("/admin/users/{userId}", "/admin/users/{userId}/connections");
    let channels = "/admin/channels";
    let of_channel = "/admin/users/{userId}/channels/{channel}";
    for (route, method, target, expected) in [
        (connections, "GET", connections, 200),
        (connections, "GET", "/admin/connections?limit=1", 200),
        (connections, "GET", "/admin/connections?limit=0", 400),
        (connection, "GET", &one, 200),
        (connection, "DELETE", &one, 204),
        (connection, "DELETE", "/admin/connections/x", 404),
        (user, "GET", "/admin/users/alice", 200),
        (user, "GET", "/admin/users/nobody", 200),
        (user, "GET", "/admin/users/%ff", 400),
        (connection, "DELETE", &format!("{one}?code=1000"), 400),
        (of_user, "DELETE", "/admin/users/alice/connections?code=x", 400),
        (of_user, "DELETE", "/admin/users/alice/connections?code=3011", 200),
        (of_channel, "DELETE", "/admin/users/alice/channels/room", 200),
        (channels, "GET", "/admin/channels?prefix=r&limit=1", 200),
        (channels, "GET", "/admin/channels?limit=0", 400),
        (of_channel, "DELETE", "/admin/users/alice/channels/%0a", 400),
        ("/admin/openapi.json", "GET", "/admin/openapi.json", 200),
    ] {
        assert_eq!(ask(route, method, target, ""), expected, "{method} {target}");
    }
    let large = format!(r#"{{"content":"{}"}}"#, "x".repeat(70_000));
    for ((route, method), operation) in &operations {
        for (_, example) in operation["requestBody"]["content"]["application/json"]["examples"]
            .as_object()
            .into_iter()
            .flatten()
        {
            assert_eq!(ask(route, method, route, &example["value"].to_string()), 200);
            assert_eq!(ask(route, method, route, "{}"), 400);
            assert_eq!(ask(route, method, route, &large), 413);
        }
        let stranger = admin.clone().with_token("wrong").ask(method, route, "");
        assert_eq!(stranger.0, 401);
        check_answer(&document, operation, 401, &stranger.1);
    }
    drop(alices);
    assert_eq!(ask("/admin/drain", "POST", "/admin/drain", ""), 202);
    assert_eq!(gateway.wait_for_exit(), 0);
}
