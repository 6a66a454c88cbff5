package boltstore

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/apitoken-go/apitoken/internal/boltfile"
)

// What bbolt must not be shown is found by package boltfile; here its errors become this package's.

type boltMeta struct {
	pageSize                   uint32
	root, freelist, pages, txn uint64
}

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, a...))
}

func ownError(err error) error {
	switch {
	case errors.Is(err, boltfile.ErrForeign):
		return ErrForeign
	case errors.Is(err, boltfile.ErrDamaged):
		return damaged("%s", boltfile.Detail(err))
	}
	return err
}

func ownMeta(m boltfile.Meta, err error) (boltMeta, error) {
	return boltMeta{pageSize: m.PageSize, root: m.Root, freelist: m.Freelist, pages: m.Pages, txn: m.Txn}, ownError(err)
}

// findMeta returns the newest meta page that reads.
func findMeta(f io.ReaderAt, size int64) (boltMeta, error) {
	return ownMeta(boltfile.FindMeta(f, size))
}

// inspectMeta refuses what is not a whole bbolt file.
func inspectMeta(f *os.File) (m boltMeta, err error) {
	fi, err := f.Stat()
	if err != nil {
		return m, err
	}
	if err := checkKindOfFile(fi); err != nil {
		return m, err
	}
	return ownMeta(boltfile.InspectMeta(f))
}

// inspectShallow is for a file that was inspected when it was opened first.
func inspectShallow(f *os.File) error {
	_, err := inspectMeta(f)
	return err
}

// inspect refuses a file that bbolt could not survive. It reads through the file, never maps it.
func inspect(f *os.File) error {
	if err := inspectShallow(f); err != nil {
		return err
	}
	return ownError(boltfile.Inspect(f))
}
