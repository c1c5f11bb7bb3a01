package schedule

// indexFew is up to how many values an index is gone through one by one.
const indexFew = 16

// index finds values by their keys. Mostly there are one or two, and they are
// found without a map's detours.
type index[K comparable, V any] struct {
	first [1]entry[K, V] // where few begins
	few   []entry[K, V]
	many  map[K]V // nil while few has all
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

// get returns the value of a key, or the zero value.
func (x *index[K, V]) get(key K) (value V) {
	if x.many != nil {
		return x.many[key]
	}
	for i := range x.few {
		if x.few[i].key == key {
			return x.few[i].value
		}
	}
	return value
}

// put adds the value of a key that has none.
func (x *index[K, V]) put(key K, value V) {
	switch {
	case x.many != nil:
		x.many[key] = value
		return
	case x.few == nil:
		x.few = x.first[:0]
	}
	if len(x.few) < indexFew {
		x.few = append(x.few, entry[K, V]{key, value})
		return
	}
	x.many = make(map[K]V, 2*indexFew)
	for _, e := range x.few {
		x.many[e.key] = e.value
	}
	x.many[key], x.few = value, nil
	x.first[0] = entry[K, V]{}
}

// remove takes the value of a key out.
func (x *index[K, V]) remove(key K) {
	if x.many != nil {
		if delete(x.many, key); len(x.many) == 0 {
			x.many = nil
		}
		return
	}
	for i := range x.few {
		if x.few[i].key == key {
			last := len(x.few) - 1
			x.few[i] = x.few[last]
			x.few[last] = entry[K, V]{}
			x.few = x.few[:last]
			return
		}
	}
}

func (x *index[K, V]) len() int { return len(x.few) + len(x.many) }
