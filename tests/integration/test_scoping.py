import pickle
from threading import Thread

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.db.models import Count, F

from tenants.context import tenant_context
from tenants.scoping import WrongTenant
from tests.database import queries
from tests.toys import Book, Reader, Shelf, make_tables


@pytest.fixture
def shelves(acme, globex):
    """The same keys in both tenants: a shelf with two books and a keeper."""
    make_tables(acme, globex)
    made = {}
    for tenant in (acme, globex):
        with tenant_context(tenant):
            shelf = Shelf.objects.create(
                id=101, name=tenant.name, keeper=Reader.objects.create(name=f"reader of {tenant.name}")
            )
            Book.objects.bulk_create([Book(id=n, shelf=shelf, title=f"{tenant.name} {n}") for n in (101, 102)])
            made[tenant.name] = shelf
    return made


EVALUATIONS = {
    "iterate": list,
    "length": len,
    "truth": bool,
    "index": lambda books: books[0],
    "slice": lambda books: list(books[:1]),
    "get": lambda books: books.get(id=101),
    "first": lambda books: books.first(),
    "count": lambda books: books.count(),
    "exists": lambda books: books.exists(),
    "contains": lambda books: books.contains(Book(id=101)),
    "aggregate": lambda books: books.aggregate(Count("id")),
    "values": lambda books: list(books.values("id")),
    "dates": lambda books: list(books.annotate(n=F("id")).order_by("n")),
    "in_bulk": lambda books: books.in_bulk(),
    "iterator": lambda books: list(books.iterator()),
    "explain": lambda books: books.explain(),
    "update": lambda books: books.update(title="x"),
    "delete": lambda books: books.delete(),
    "create": lambda books: books.create(shelf_id=101, title="x"),
    "get_or_create": lambda books: books.get_or_create(id=101),
    "bulk_create": lambda books: books.bulk_create([Book(shelf_id=101, title="x")]),
    "bulk_update": lambda books: books.bulk_update([Book(id=101, title="x")], ["title"]),
    "raw": lambda books: list(books.raw("SELECT * FROM tests_book")),
    "select_related": lambda books: list(books.select_related("shelf")),
    "prefetch": lambda books: list(books.prefetch_related("readers")),
    "subquery": lambda books: list(Shelf.objects.filter(id__in=books.values("shelf_id"))),
    "or": lambda books: list(Book.objects.all() | books),
    "union": lambda books: list(Book.objects.all().union(books)),
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_a_query_made_in_one_tenant_never_runs_in_another(shelves, acme, globex, evaluate):
    with tenant_context(acme):
        books = Book.objects.filter(id__gt=0)
    with tenant_context(globex), pytest.raises(WrongTenant, match=acme.schema_name):
        evaluate(books)
    with tenant_context(globex):
        assert sorted(Book.objects.values_list("title", flat=True)) == ["globex 101", "globex 102"]


@pytest.mark.parametrize("evaluate", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_the_same_query_runs_in_its_own_tenant(shelves, acme, evaluate):
    with tenant_context(acme):
        evaluate(Book.objects.filter(id__gt=0))


def test_a_query_made_in_a_tenant_does_not_run_in_public(shelves, acme):
    with tenant_context(acme):
        books = Book.objects.all()
    with pytest.raises(WrongTenant):
        list(books)


def test_rows_already_read_into_a_query_do_not_leave_the_tenant(shelves, acme):
    with tenant_context(acme):
        books = Book.objects.all()
        assert len(books) == 2
    with pytest.raises(WrongTenant):
        list(books)


def test_a_half_read_iterator_stops_at_the_border(shelves, acme, globex):
    with tenant_context(acme):
        books = Book.objects.order_by("id").iterator(chunk_size=1)
        assert next(books).title == "acme 101"
    with tenant_context(globex), pytest.raises(WrongTenant):
        next(books)


def test_a_raw_query_stays_in_its_tenant(shelves, acme, globex):
    with tenant_context(acme):
        books = Book.objects.raw("SELECT * FROM tests_book")
    with tenant_context(globex), pytest.raises(WrongTenant):
        list(books.prefetch_related("readers"))


USES = {
    "save": lambda shelf: shelf.save(),
    "save in a named database": lambda shelf: shelf.save(using="default"),
    "save a part": lambda shelf: shelf.save(update_fields=["name"]),
    "delete": lambda shelf: shelf.delete(),
    "delete in a named database": lambda shelf: shelf.delete(using="default"),
    "refresh": lambda shelf: shelf.refresh_from_db(),
    "reverse relation": lambda shelf: list(shelf.books.all()),
    "reverse relation in a named database": lambda shelf: list(shelf.books.db_manager("default").all()),
    "reverse count": lambda shelf: shelf.books.count(),
    "reverse create": lambda shelf: shelf.books.create(title="x"),
    "reverse update": lambda shelf: shelf.books.update(title="x"),
    "forward relation to a plain model": lambda shelf: shelf.keeper,
    "as a new row": lambda shelf: setattr(shelf, "pk", None) or shelf.save(),
    "bulk_update": lambda shelf: Shelf.objects.bulk_update([shelf], ["name"]),
    "bulk_create": lambda shelf: Shelf.objects.bulk_create([shelf], ignore_conflicts=True),
    "as another object's relation": lambda shelf: Book(shelf=shelf, title="x").save(),
    "in a bulk of others": lambda shelf: Book.objects.bulk_create([Book(shelf=shelf, title="x")]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("origin", ["loaded", "created"])
def test_an_object_of_one_tenant_is_useless_in_another(shelves, acme, globex, use, origin):
    with tenant_context(acme):
        shelf = Shelf.objects.get() if origin == "loaded" else shelves["acme"]
        shelf._state.fields_cache.clear()
    with tenant_context(globex), pytest.raises(WrongTenant):
        use(shelf)
    with tenant_context(globex):
        assert list(Shelf.objects.values_list("id", "name")) == [(101, "globex")]
        assert Book.objects.count() == 2


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_an_object_works_in_its_own_tenant(shelves, acme, use):
    with tenant_context(acme):
        use(Shelf.objects.get())


@pytest.mark.parametrize("store", [lambda book: book.save(), lambda book: Book.objects.bulk_create([book])])
def test_an_object_not_stored_yet_cannot_carry_a_relation_out(shelves, acme, globex, store):
    with tenant_context(acme):
        book = Book(shelf=Shelf.objects.get(), title="x")
    with tenant_context(globex), pytest.raises(WrongTenant):
        store(book)


def test_an_object_made_in_bulk_remembers_its_tenant(shelves, acme, globex):
    with tenant_context(acme):
        (shelf,) = Shelf.objects.bulk_create([Shelf(name="in bulk")])
    with tenant_context(globex), pytest.raises(WrongTenant):
        shelf.save()


def test_relations_work_inside_a_tenant(shelves, acme):
    with tenant_context(acme):
        book = Book.objects.select_related("shelf__keeper").get(id=101)
        assert (book.shelf.name, book.shelf.keeper.name) == ("acme", "reader of acme")
        assert Book.objects.get(id=101).shelf.keeper.name == "reader of acme"
        book.readers.add(Reader.objects.get())
        assert [reader.name for reader in book.readers.all()] == ["reader of acme"]
        shelf = Shelf.objects.prefetch_related("books__readers").get()
        assert [len(book.readers.all()) for book in shelf.books.all()] == [1, 0]
        assert Book.objects.filter(shelf__in=Shelf.objects.filter(name="acme")).count() == 2
        assert shelf.delete()[0] == 4


def test_an_object_related_by_select_related_remembers_its_tenant(shelves, acme, globex):
    with tenant_context(acme):
        shelf = Book.objects.select_related("shelf").get(id=101).shelf
    with tenant_context(globex), pytest.raises(WrongTenant):
        shelf.save()


def test_a_many_to_many_relation_stays_in_its_tenant(shelves, acme, globex):
    with tenant_context(acme):
        book = Book.objects.get(id=101)
    with tenant_context(globex):
        with pytest.raises(WrongTenant):
            book.readers.add(Reader.objects.get())
        with pytest.raises(WrongTenant):
            list(book.readers.all())


def test_a_deferred_field_is_not_read_from_another_tenant(shelves, acme, globex):
    with tenant_context(acme):
        book = Book.objects.only("id").get(id=101)
    with tenant_context(globex), pytest.raises(WrongTenant):
        _ = book.title


def test_a_query_declared_at_import_time_serves_each_tenant(shelves, acme, globex):
    declared = Book.objects.all().anywhere()
    for tenant in (acme, globex):
        with tenant_context(tenant):
            assert {book.title.split()[0] for book in declared.all()} == {tenant.name}


def test_a_thread_started_in_a_tenant_is_in_public_and_can_use_nothing_of_it(shelves, in_acme):
    books, seen = Book.objects.all(), []

    def look() -> None:
        seen.append(connection.schema_name)
        try:
            list(books)
        except WrongTenant as error:
            seen.append(type(error))
        finally:
            connection.close()

    thread = Thread(target=look)
    thread.start()
    thread.join()
    assert seen == ["public", WrongTenant]


def test_asynchronous_code_reads_its_own_tenant_or_nothing(shelves, in_acme):
    books = Book.objects.all()

    async def count() -> int:
        return await books.acount()

    try:
        found = async_to_sync(count)()
    except WrongTenant:
        return
    assert found == 2


def test_scoping_costs_no_query(shelves, in_acme):
    with queries(1):
        shelf = Shelf.objects.get()
    with queries(1):
        shelf.save()
