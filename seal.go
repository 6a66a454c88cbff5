package apitoken

import (
	"context"
	"errors"

	"github.com/apitoken-go/apitoken/internal/seal"
)

// Sealer encrypts what must not lie in the store in clear: the root secret, under which the service seals its signing
// keys. A KMS implements it; NewSealer and KeyFile are local. It is asked at start and when secrets rotate, never for a token.
type Sealer interface {
	// Seal encrypts plain. What it returns opens only with an equal context, which is not secret.
	Seal(ctx context.Context, plain, context []byte) (sealed []byte, err error)
	Open(ctx context.Context, sealed, context []byte) (plain []byte, err error)
}

// NewSealer seals by AES-256-GCM under the first key and opens under any: put a new one in front to rotate, run
// [SigningKeys.Rewrap], then drop the old one. Each is 32 random bytes.
func NewSealer(keys ...[]byte) (Sealer, error) {
	s, err := seal.NewLocal(keys...)
	if err != nil {
		return nil, sealError(err)
	}
	return localSealer{s}, nil
}

// KeyFile is a Sealer whose key lies in a file. Beside the database it keeps the keys out of backups and copies of that file;
// on another disk it also keeps them from whoever takes the database's. The file is made with mode 0600
// when something is sealed for the first time. It refuses to make a new one where sealed keys exist already,
// a file that others may read, and one that is no key.
func KeyFile(path string) (Sealer, error) {
	f, err := seal.OpenFile(path)
	if err != nil {
		return nil, sealError(err)
	}
	return localSealer{f}, nil
}

// localSealer gives out errors of this package.
type localSealer struct{ in Sealer }

func (s localSealer) Seal(ctx context.Context, plain, context []byte) ([]byte, error) {
	sealed, err := s.in.Seal(ctx, plain, context)
	return sealed, public(err)
}

func (s localSealer) Open(ctx context.Context, sealed, context []byte) ([]byte, error) {
	plain, err := s.in.Open(ctx, sealed, context)
	return plain, public(err)
}

// sealError says to whoever starts the program what an *Error keeps from clients.
func sealError(err error) error {
	if e := (*Error)(nil); errors.As(public(err), &e) {
		return &ConfigError{Field: "Seal", Err: e}
	}
	return err
}
