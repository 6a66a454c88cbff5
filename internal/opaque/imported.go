// The IDs of API keys that come from another program.

package opaque

import "bytes"

const labelImport = "ak1i" // IDs of imported keys

// importedTime is what an imported key's ID has in place of a time, the last there is: what descends from it is not older for it.
var importedTime = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ImportedID is the ID of the nth API key of another program's that a form finds by lookup.
func ImportedID(namespace, form, lookup string, n int) (id ID) {
	h := Hash(labelImport, []byte(namespace), []byte(form), []byte(lookup), []byte{byte(n)})
	copy(id[:], h[:])
	copy(id[:], importedTime)
	return id
}

// Imported reports whether text is the ID of an imported API key.
func Imported(text string) bool {
	id, err := ParseID(text)
	return err == nil && bytes.HasPrefix(id[:], importedTime)
}
