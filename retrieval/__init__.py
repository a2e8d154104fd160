"""Retrieval: documents in, evidence out.

The facade is ``retrieval.library.Library``; everything that it takes and gives is in ``retrieval.types``, every error
in ``retrieval.errors`` (all are ``RetrievalError``, and ``str(error)`` may be shown to a user)::

    library = Library.open(home, database_url=None, embedder=None, limits=None, chunking=None)
    library.warm_up()                        # load index and model now (else: at the first search or ingest)
    library.ingest([path | folder | Upload(name, data), …], collection="default", owner="local",
                   progress=None, cancelled=None, wait_s=5.0)            -> [IngestResult]
    library.documents(collection=None, owner=…, limit=None, after=None)  -> [Document]   # by id; after = cursor
    library.collections(owner)               -> [Collection]
    library.document(id, owner)              -> Document
    library.text(id, start=0, end=None, owner=…, version=None)           -> str
    library.pages(id, owner)                 -> [Page]
    library.page_of(id, offset, owner)       -> int
    library.chunks(id, owner)                -> [Hit]       # the whole document, in order, score 0
    library.original(id, owner)              -> bytes       # the file as it was ingested
    library.boxes(id, start, end, owner)     -> [Box]       # where a span is printed on the pages of a PDF
    library.delete(id, owner)                -> Document    # at once
    library.search(query, k=10, collection=None, documents=None, owner=…, mode="hybrid|dense|sparse")
                                             -> SearchResult(hits: [Hit], generation: int, note: str)
    library.build_index() / compact() / rebuild(progress=None)           -> IndexReport
    library.set_tokenizer(CorpusTokenizer(fingerprint, encode))          # the next build makes a token store
    library.token_store(owner)               -> TokenStore | None        # .continuations(…) for drafters
    library.verify_index()                   -> VerifyReport
    library.stats(owner=None)                -> LibraryStats
    library.export_collection(path, collection, owner) -> int;  library.import_collection(path, collection, owner)
    library.close()                          # also a context manager

    library.jobs.submit([Upload(name, data), …], collection, owner) -> Job   # stored and queued when it returns
    library.jobs.get(job, owner) / listing(owner, limit) / cancel(job, owner) / retry(job, owner)
    library.jobs.start_worker() / stop_worker()   # threads of this process work the queue off

An ``IngestResult`` has ``status`` ``ready`` or ``failed`` and never an exception: a bad file fails alone.
Sentence spans: ``retrieval.parsing.sentences.sentences(text)``. Tables for keys and audit: ``retrieval.store.tables``,
through ``library.database.read()`` and ``.write()``.
"""
