// Package cursor writes and reads the cursors of Store.List, the same for every engine. A cursor names the order of its query, by kind
// and direction, so that one of another order is refused and not misread. It stands on package store alone; the engines call it.
package cursor

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/store"
)

// ErrUnreadable is of a cursor whose place the engine can't read.
var ErrUnreadable = fmt.Errorf("%w: the cursor does not read", store.ErrInvalid)

// order is what a query's cursors begin with.
func order(q *store.Query) string {
	dir := "o"
	switch {
	case q.Ends(): // in an order of the engine's own
		dir = "e"
	case q.Newest:
		dir = "n"
	}
	return "1" + dir + string(q.Kind) + "\x00"
}

// Text is the cursor of a place in what q lists. The place is any bytes of the engine's, not empty.
func Text(q *store.Query, place string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(order(q) + place))
}

// Place is the position in q.Cursor, "" for the first page. ErrInvalid: the cursor is malformed, or of a listing in another order.
func Place(q *store.Query) (string, error) {
	if q.Cursor == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	place, ok := strings.CutPrefix(string(b), order(q))
	if err != nil || !ok || place == "" || Text(q, place) != q.Cursor { // base64 takes several texts for one, such as with line ends
		return "", fmt.Errorf("%w: the cursor is of another query", store.ErrInvalid)
	}
	return place, nil
}

// PlaceText is Place for an engine whose places are text: UTF-8 without NUL, as servers want it.
func PlaceText(q *store.Query) (string, error) {
	place, err := Place(q)
	if err == nil && (!utf8.ValidString(place) || strings.IndexByte(place, 0) >= 0) {
		return "", ErrUnreadable
	}
	return place, err
}

// Ending is a place in a listing by expiry, behind the record that ends then.
func Ending(expires int64, id string) string { return strconv.FormatInt(expires, 10) + " " + id }

// ReadEnding reads what Ending wrote.
func ReadEnding(place string) (expires int64, id string, err error) {
	text, id, ok := strings.Cut(place, " ")
	if expires, err = strconv.ParseInt(text, 10, 64); err != nil || !ok {
		return 0, "", ErrUnreadable
	}
	return expires, id, nil
}
