// SPDX-License-Identifier: GPL-2.0
/*
 * /proc/span_pages: what pages are used for, for profiles of the faults between
 * nodes. Numbers of pages of guest memory are written to it, and a line for each
 * can be read; both fit into a page.
 *
 * What is told is a hint: the page may be freed and used again at any time.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/proc_fs.h>
#include <linux/string.h>
#include <asm/page.h>
#include <as-layout.h>
#include <mem_user.h>
#include <node.h>
#include "../../../mm/slab.h"

static int file_use(struct folio *folio, char *to, size_t size)
{
	int length = 0;

	if (!folio_try_get(folio))
		return scnprintf(to, size, "free");
	/* The mapping stays as long as the folio is locked */
	if (folio_trylock(folio)) {
		struct address_space *mapping = folio_mapping(folio);

		if (mapping && mapping->host)
			length = scnprintf(to, size, "file of %s",
					   mapping->host->i_sb->s_type->name);
		folio_unlock(folio);
	}
	folio_put(folio);

	return length;
}

/* Nothing keeps the page a slab's, so what it says is looked up, not followed */
static int slab_use(struct page *page, char *to, size_t size)
{
	struct kmem_cache *cache, *said;
	struct slab *slab;

	guard(mutex)(&slab_mutex);
	slab = page_slab(page);
	if (!slab)
		return 0;
	said = READ_ONCE(slab->slab_cache);
	list_for_each_entry(cache, &slab_caches, list)
		if (cache == said)
			return scnprintf(to, size, "slab %s", cache->name);

	return 0;
}

static int page_use(unsigned long number, char *to, size_t size)
{
	struct page *page;
	struct folio *folio;
	int length;

	if (!pfn_valid(number))
		return scnprintf(to, size, "no memory");
	page = pfn_to_page(number);
	if (PageReserved(page))
		return scnprintf(to, size, "reserved");
	if (PageBuddy(page))
		return scnprintf(to, size, "free");
	if (PageTable(page))
		return scnprintf(to, size, "page table");

	length = slab_use(page, to, size);
	if (length)
		return length;

	folio = page_folio(page);
	if (folio_test_anon(folio))
		return scnprintf(to, size, "process memory");
	if (folio->mapping)
		length = file_use(folio, to, size);

	return length ?: scnprintf(to, size, "kernel memory");
}

static ssize_t page_use_write(struct file *file, const char __user *from,
			      size_t size, loff_t *at)
{
	char *buffer = simple_transaction_get(file, from, size), *rest, *word;
	char *answer __free(kfree) = NULL;
	size_t length = 0;

	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	answer = kzalloc(SIMPLE_TRANSACTION_LIMIT, GFP_KERNEL);
	if (!answer)
		return -ENOMEM;

	rest = strim(buffer);
	while ((word = strsep(&rest, " "))) {
		unsigned long number;
		int error = kstrtoul(word, 10, &number);

		if (error)
			return error;
		length += scnprintf(answer + length,
				    SIMPLE_TRANSACTION_LIMIT - length, "%lu ",
				    number);
		length += page_use(number, answer + length,
				   SIMPLE_TRANSACTION_LIMIT - length);
		length += scnprintf(answer + length,
				    SIMPLE_TRANSACTION_LIMIT - length, "\n");
	}
	if (length >= SIMPLE_TRANSACTION_LIMIT - 1)
		return -E2BIG;
	memcpy(buffer, answer, length);
	simple_transaction_set(file, length);

	return size;
}

static const struct proc_ops page_use_ops = {
	.proc_read	= simple_transaction_read,
	.proc_write	= page_use_write,
	.proc_release	= simple_transaction_release,
	.proc_lseek	= default_llseek,
};

static int __init page_use_init(void)
{
	if (node_active())
		proc_create("span_pages", 0600, NULL, &page_use_ops);

	return 0;
}
late_initcall(page_use_init);
