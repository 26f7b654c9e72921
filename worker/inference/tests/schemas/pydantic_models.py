"""Writes pydantic.json: the schemas that pydantic makes of typical arguments and answers."""

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar, Union
from uuid import UUID

from pydantic import (
    AnyUrl, BaseModel, Base64Bytes, ConfigDict, DirectoryPath, EmailStr, Field, FilePath, HttpUrl, Json, PositiveInt,
    RootModel, SecretStr, StringConstraints, TypeAdapter, conlist, constr,
)

LOOK_AHEAD = r"^(?=.*[0-9])(?=.*[a-z]).{8,20}$"


class Colour(str, Enum):
    red = "red"
    green = "green"
    blue = "blue"


class Level(IntEnum):
    low = 1
    high = 2


class Address(BaseModel):
    street: str
    city: str
    postcode: str = Field(pattern=r"^[0-9]{5}$")
    country: Optional[str] = None


class Person(BaseModel):
    name: str = Field(min_length=1, max_length=40, description="Full name")
    age: Optional[int] = Field(default=None, ge=0, le=150)
    email: Optional[EmailStr] = None
    address: Address
    tags: set[str] = Field(default_factory=set)


class Account(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    login: constr(pattern=r"^[a-z][a-z0-9_]{2,15}$")
    password: SecretStr
    recovery: constr(pattern=LOOK_AHEAD)


class ReadFile(BaseModel):
    path: Path
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    limit: Optional[PositiveInt] = None


class CopyFiles(BaseModel):
    sources: list[FilePath] = Field(min_length=1)
    target: DirectoryPath
    overwrite: bool = False


class Upload(BaseModel):
    name: str
    data: bytes
    signature: Base64Bytes


class Event(BaseModel):
    id: UUID
    day: date
    at: time
    starts: datetime
    lasts: timedelta


class Price(BaseModel):
    amount: Decimal = Field(gt=0, max_digits=10, decimal_places=2)
    currency: str = Field(min_length=3, max_length=3)


class Range(BaseModel):
    step: Annotated[int, Field(gt=0, multiple_of=5)]
    ratio: Annotated[float, Field(ge=0, lt=1)]
    rounded: Annotated[float, Field(multiple_of=0.25)]


class Host(BaseModel):
    ipv4: IPv4Address
    ipv6: Optional[IPv6Address] = None
    port: int = Field(ge=1, le=65535)


class Fetch(BaseModel):
    url: HttpUrl
    referrer: Optional[AnyUrl] = None
    headers: dict[str, str] = {}
    max_length: int = Field(default=5000, gt=0, lt=1000000)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Owner(BaseModel):
    pet: Union[Cat, Dog] = Field(discriminator="kind")


class Kennel(BaseModel):
    animals: list[Annotated[Union[Cat, Dog], Field(discriminator="kind")]]


class Loose(BaseModel):
    value: Union[int, float, str, None]
    either: Union[Cat, list[Cat]]


class Node(BaseModel):
    name: str
    children: list["Node"] = []


class Link(BaseModel):
    word: str
    next: Optional["Link"] = None


class Compare(BaseModel):
    op: Literal["eq", "lt", "gt"]
    field: str
    value: Union[str, int]


class And(BaseModel):
    op: Literal["and"]
    all: list["Filter"]


class Not(BaseModel):
    op: Literal["not"]
    inner: "Filter"


Filter = Annotated[Union[Compare, And, Not], Field(discriminator="op")]


class Search(BaseModel):
    filter: Filter
    limit: int = 10


class Paint(BaseModel):
    colour: Colour
    level: Level = Level.low
    only: Literal["matt"] = "matt"
    mixed: Literal["a", 1, True, None] = None


class Pairs(BaseModel):
    point: tuple[float, float]
    named: tuple[str, int, bool]
    rest: tuple[int, ...]


class Maps(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    by_number: dict[int, str]
    by_name: dict[constr(pattern=r"^[a-z]+$"), int]
    by_colour: dict[Colour, float]
    by_secret: dict[constr(pattern=r"^(?!_).+$"), str] = {}
    free: dict[str, Any] = {}


class Sets(BaseModel):
    numbers: set[int]
    frozen: frozenset[Colour]
    few: conlist(str, min_length=1, max_length=3)


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    b: Optional[str]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int
    __pydantic_extra__: dict[str, int]


class Aliases(BaseModel):
    from_: str = Field(alias="from")
    class_name: str = Field(alias="class-name")


class Examples(BaseModel):
    """A docstring becomes a description."""
    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "x"}], "icon": "glass"})
    query: str = Field(examples=["cats"], json_schema_extra={"ui_widget": "textarea"})
    old: Optional[str] = Field(default=None, deprecated=True)


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]
    cursor: Optional[str] = None


class Weather(BaseModel):
    city: str
    unit: Literal["celsius", "fahrenheit"] = "celsius"
    days: int = Field(default=1, ge=1, le=14)


class Plan(BaseModel):
    steps: list["Step"] = Field(min_length=1, max_length=8)
    summary: str


class Step(BaseModel):
    explanation: str
    output: Optional[Json] = None
    after: list[int] = []


class Grid(RootModel[list[list[int]]]):
    pass


class Settings(BaseModel):
    theme: Colour = Colour.red
    nested: dict[str, dict[str, list[float]]]
    anything: Any
    callback: Optional[constr(strip_whitespace=True, to_upper=True)] = None
    code: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}-\d{3}$", max_length=6)]


class Empty(BaseModel):
    pass


class Base(BaseModel):
    id: int


class Derived(Base):
    extra: Annotated[Base, Field(description="Another one")] = Base(id=1)
    large: int = Field(default=0, le=2**63 - 1, ge=-(2**63))


MODELS = [
    Person, Account, ReadFile, CopyFiles, Upload, Event, Price, Range, Host, Fetch, Owner, Kennel, Loose, Node, Link,
    Search, Paint, Pairs, Maps, Sets, Closed, Open, Aliases, Examples, Page[Weather], Page[int], Weather, Plan, Grid,
    Settings, Empty, Derived,
]


def main():
    schemas = {}
    for model in MODELS:
        name = model.__name__.replace("[", "_").replace("]", "")
        schemas[f"pydantic_{name}"] = model.model_json_schema()
    schemas["pydantic_union"] = TypeAdapter(Union[Cat, Dog, int]).json_schema()
    schemas["pydantic_serialization"] = Price.model_json_schema(mode="serialization")
    lines = [f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in schemas.items()]
    print("{\n" + ",\n".join(lines) + "\n}")


main()
