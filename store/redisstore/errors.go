package redisstore

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What the verbs answer beside the errors of package store. In the words of the contract all of them are unknown
// outcomes: repeating the identical Change is safe.
var (
	// ErrUnsafe: the server may evict records or lose acknowledged writes, or its configuration can't be seen. The text
	// says what to change, in the server or in Options. Nothing was read or written.
	ErrUnsafe = errors.New("redisstore: server is not safe for this store")
	// ErrFull: the server reached its maxmemory, or can't write its append-only file. Nothing was written.
	ErrFull = errors.New("redisstore: server takes no writes")
	// ErrNotReplicated: the write was done, and fewer replicas or disks than Options ask for confirmed it in time.
	ErrNotReplicated = errors.New("redisstore: write not confirmed")
	// ErrDamaged: a key of the namespace holds what this package did not write.
	ErrDamaged = errors.New("redisstore: value is damaged")
	// ErrEmptied: all that the namespace had is gone, by FLUSHALL or because the server came back with nothing, and with it
	// every revocation. Nothing is read or written, by processes that ran then and by those that start afterwards, until a
	// backup is put back; or until every process is stopped and the hash {prefix:namespace}m deleted, upon which it begins
	// anew.
	ErrEmptied = errors.New("redisstore: the namespace was emptied, and its revocations are lost: put a backup back, or stop every process and delete its key {prefix:namespace}m to begin anew")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("redisstore: closed")
)

// errAway: the node that was asked is no primary, or has fewer replicas than wanted; another may answer soon.
var errAway = errors.New("redisstore: no primary that may answer")

func errValue(what string) error { return fmt.Errorf("%w: %s", ErrDamaged, what) }

// serverError tells whether err is an answer of the server, which then did nothing: the scripts fail before their first
// write or not at all.
func serverError(err error) (redis.Error, bool) {
	var e redis.Error
	ok := errors.As(err, &e) && !errors.Is(err, redis.Nil)
	return e, ok
}

// passing tells whether the server's answer is one that another node, or the same one soon, would not give.
func passing(text string) bool {
	for _, p := range [...]string{"MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "BUSY ", "UNBLOCKED"} {
		if strings.HasPrefix(text, p) {
			return true
		}
	}
	return false
}

func hasCode(err error, code string) bool {
	e, ok := serverError(err)
	return ok && strings.HasPrefix(e.Error(), code)
}

// named gives a server's error a form that callers can test for.
func named(err error) error {
	e, ok := serverError(err)
	if !ok {
		return fmt.Errorf("redisstore: %w", err)
	}
	text := e.Error()
	switch {
	case strings.Contains(text, "OOM "), strings.Contains(text, "MISCONF"), strings.Contains(text, "NOREPLICAS"):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case strings.Contains(text, "WRONGTYPE"):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("redisstore: %w", err)
}
