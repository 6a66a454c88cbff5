// Package ledger makes a service's audit log tamper-evident. A [Ledger] follows the event feed behind the writes, appends each
// event to a Merkle log (RFC 6962), and at an interval signs a checkpoint, three lines of text, that it hands to the host's
// publishers: a file, a webhook, a witness that co-signs, another store.
//
//	dir, err := ledger.OpenDir("audit-ledger", nil)
//	led, err := ledger.Open(ledger.Config{Storage: dir, Signer: signer, Publish: []ledger.Publisher{ledger.FilePublisher("/mnt/elsewhere/checkpoints")}})
//	svc, err := apitoken.New(apitoken.Config{ ..., Sinks: []apitoken.Sink{{Name: "ledger", Auditor: led}}})
//	err = led.Follow(svc)
//
// The promise is exactly this: an edit is found once a checkpoint that covers it has reached someone else. What happened since the
// last published checkpoint, at most Config.Interval and the time of publishing, is protected by the operating system alone.
// Given an export and a checkpoint, [Verify] and the command apitoken-verify find every change of the export; given an
// earlier checkpoint too, they also find what only who holds the log's key can make: a history signed again, one that was cut
// back, and two histories told to two readers.
//
// One process of a fleet has the ledger's directory; the others write events to the store that it follows. As a sink with
// apitoken.Sink.MaxLag the ledger becomes a condition of issuing; revoking and validating never wait for it.
//
// After a crash [OpenDir] cuts off what was not committed, says so in [Dir.Torn], and the ledger reads it from the feed again.
// What was committed cannot be damaged by a crash of the process, and OpenDir, [Open] and [Ledger.Check] answer a
// [TamperError] for it. [Ledger.CheckSource] holds the service's own store against the log.
//
// # Personal data
//
// With a [Vault], what concerns a person stands in the log as a random pseudonym and as ciphertext under that person's own key.
// [Vault.Erase] destroys the key: the log verifies as before, and nobody can tell any more whom it speaks of. The service's
// own store holds its events in clear for as long as apitoken.Config.KeepEvents says, and so do exports and backups of it;
// whoever promises erasure within a month sets KeepEvents, and keeps backups, no longer than that.
//
// # Keys
//
// The checkpoint key is no token key, and the best place for it is outside this process: a note.Signer is one method. The note
// package's own ed25519 keys do for a start.
package ledger
