"""instructor in MD_JSON: a model of pydantic's out of the JSON in a fenced block."""

from __future__ import annotations

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel

BASE, KEY, MODEL = sys.argv[1:4]


# The words that a model of 135 million parameters needs to tell an instance from its schema.
ASKED = 'Convert to JSON like {"name": string, "age": number}: Jason is 25 years old.'


class Person(BaseModel):
    name: str
    age: int


client = instructor.from_openai(OpenAI(base_url=BASE, api_key=KEY), mode=instructor.Mode.MD_JSON)
person, completion = client.chat.completions.create_with_completion(
    model=MODEL,
    response_model=Person,
    messages=[{"role": "user", "content": ASKED}],
    temperature=0,
    max_tokens=200,
    max_retries=3,
)
assert isinstance(person, Person)
assert person.age == 25 and person.name == "Jason", person
print(f"{person!r} out of {completion.choices[0].message.content!r}")
