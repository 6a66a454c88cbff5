package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/apitoken-go/apitoken/store"
)

// What the verbs answer beside the errors of package store. In the words of the contract all of them are unknown
// outcomes: repeating the identical Change is safe.
var (
	// ErrFull: the cluster raised its NOSPACE alarm, and takes no writes until it has room and the alarm is disarmed.
	// Nothing was written.
	ErrFull = errors.New("etcdstore: cluster is out of space")
	// ErrOutboxFull: as many events wait in etcd as Options.OutboxBytes allows, and none of them was shipped for a while, or there is no
	// store to ship them to. Nothing was written. Changes with a revocation (a put of store.KindRule) never get it.
	ErrOutboxFull = errors.New("etcdstore: outbox of events is full")
	// ErrDamaged: a key under the prefix holds what this package did not write.
	ErrDamaged = errors.New("etcdstore: value is damaged")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("etcdstore: closed")
)

// errMoved: the cluster is not, or no longer, what this process took it for; ask again.
var errMoved = errors.New("etcdstore: history was checked again")

func errValue(what string) error { return fmt.Errorf("%w: %s", ErrDamaged, what) }

// fate is what an error of the client says about the request.
type fate int

const (
	refused   fate = iota // not done, and the same request would be refused again
	retryable             // not done, and another attempt may succeed
	ambiguous             // may have been done
)

// fateOf judges an error of a write, and gives it a form that callers can test for.
func fateOf(err error) (fate, error) {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return refused, fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return refused, fmt.Errorf("%w: %w", store.ErrTooLarge, err)
	case errors.Is(err, rpctypes.ErrTooManyRequests), errors.Is(err, rpctypes.ErrNotLeader):
		return retryable, err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return ambiguous, err
	}
	switch codeOf(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.FailedPrecondition:
		// The server looks at these before it proposes anything.
		return refused, err
	case codes.ResourceExhausted:
		// gRPC's own limits on a message's size: the host's client refused to send it, or to read the answer.
		if strings.Contains(err.Error(), "trying to send message larger") {
			return refused, fmt.Errorf("%w: %w", store.ErrTooLarge, err)
		}
	}
	return ambiguous, err
}

func codeOf(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// passing tells whether a read may succeed when it is repeated.
func passing(err error) bool {
	if errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	c := codeOf(err)
	return c == codes.Unavailable || c == codes.Unknown && errors.Is(err, rpctypes.ErrNotLeader)
}

func errCompacted(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }
