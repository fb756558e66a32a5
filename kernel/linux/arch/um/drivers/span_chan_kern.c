// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/span: one duplex byte stream between the guest's first process and
 * the host, over a stream socket that the process running the kernel has
 * inherited. The command line names it: span.chan=<descriptor>.
 *
 * Operations run on any CPU; interrupts only where the descriptor lives.
 * The host sees no address of user memory: data passes through one bounce
 * buffer for each direction.
 *
 * Interrupts are edges: the host tells once that the socket has become
 * readable or writable. CHAN_MAY_READ and CHAN_MAY_WRITE remember that. Each
 * is cleared *before* the host call that may find nothing to do and set again
 * when the call got something done, so an edge that comes in between is kept:
 * a flag that stays clear means that the host owes another interrupt.
 */
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/miscdevice.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <irq_kern.h>
#include <os.h>

/* Declared for parts of RCU only, and exported all the same */
#include "../../../kernel/rcu/rcu.h"

/* Size of a bounce buffer, and the most that one host call moves. */
#define CHAN_BUFFER_BYTES	(32 * 1024)

enum {
	CHAN_OPEN,		/* at most one opener at a time */
	CHAN_MAY_READ,
	CHAN_MAY_WRITE,
	CHAN_ENDED,		/* the host's end sends no more */
};

struct span_chan {
	int fd;
	unsigned long flags;
	wait_queue_head_t wait;

	/* Received and not yet read: in_buffer[in_start..in_end]. */
	struct mutex in_lock;
	char *in_buffer;
	size_t in_start;
	size_t in_end;
	/* An error of the host's read, reported by the next read here. */
	int in_error;

	struct mutex out_lock;
	char *out_buffer;
	/* The first process has said that the guest is ready, or that it failed. */
	bool told;
};

static struct span_chan chan = {
	.fd = -1,
	.flags = BIT(CHAN_MAY_READ) | BIT(CHAN_MAY_WRITE),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(chan.wait),
	.in_lock = __MUTEX_INITIALIZER(chan.in_lock),
	.out_lock = __MUTEX_INITIALIZER(chan.out_lock),
};

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "span."
module_param_named(chan, chan.fd, int, 0);

static irqreturn_t span_chan_readable(int irq, void *dev)
{
	/*
	 * A hang-up ends writing as well, and comes only as an event of this
	 * side.
	 */
	set_bit(CHAN_MAY_READ, &chan.flags);
	set_bit(CHAN_MAY_WRITE, &chan.flags);
	wake_up_interruptible(&chan.wait);
	return IRQ_HANDLED;
}

static irqreturn_t span_chan_writable(int irq, void *dev)
{
	set_bit(CHAN_MAY_WRITE, &chan.flags);
	wake_up_interruptible(&chan.wait);
	return IRQ_HANDLED;
}

static bool span_chan_has_input(void)
{
	return chan.in_start < chan.in_end || chan.in_error ||
	       test_bit(CHAN_ENDED, &chan.flags);
}

/*
 * Asks the host for input unless some is here or an interrupt will announce
 * it. Returns whether a read would now get something: data, the end of the
 * stream, or an error. Called with in_lock held.
 */
static bool span_chan_fill(void)
{
	int n;

	if (span_chan_has_input())
		return true;
	if (!test_and_clear_bit(CHAN_MAY_READ, &chan.flags))
		return false;

	do {
		n = os_read_file(chan.fd, chan.in_buffer, CHAN_BUFFER_BYTES);
	} while (n == -EINTR);
	if (n == -EAGAIN)
		return false;

	if (n > 0) {
		chan.in_start = 0;
		chan.in_end = n;
	} else if (n == 0) {
		set_bit(CHAN_ENDED, &chan.flags);
	} else {
		chan.in_error = n;
	}
	/* There may be more, or the end behind this: only -EAGAIN re-arms. */
	set_bit(CHAN_MAY_READ, &chan.flags);
	return true;
}

static ssize_t span_chan_take(char __user *to, size_t count)
{
	size_t n = min(count, chan.in_end - chan.in_start);
	int err = chan.in_error;

	if (n) {
		n -= copy_to_user(to, chan.in_buffer + chan.in_start, n);
		chan.in_start += n;
		return n ? n : -EFAULT;
	}
	chan.in_error = 0;
	return err;
}

static ssize_t span_chan_read(struct file *file, char __user *to, size_t count,
			      loff_t *pos)
{
	ssize_t ret;

	if (!count)
		return 0;

	for (;;) {
		if (mutex_lock_interruptible(&chan.in_lock))
			return -ERESTARTSYS;
		if (span_chan_fill()) {
			ret = span_chan_take(to, count);
			mutex_unlock(&chan.in_lock);
			return ret;
		}
		mutex_unlock(&chan.in_lock);

		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		/* A second reader may have taken what the interrupt announced. */
		if (wait_event_interruptible(chan.wait,
					     test_bit(CHAN_MAY_READ, &chan.flags) ||
					     span_chan_has_input()))
			return -ERESTARTSYS;
	}
}

/*
 * Offers the host @len bytes. Returns how many it took, or -EAGAIN after
 * which an interrupt comes once it takes more. Called with out_lock held.
 */
static int span_chan_offer(const char *from, size_t len)
{
	int n, attempt;

	if (!test_and_clear_bit(CHAN_MAY_WRITE, &chan.flags))
		return -EAGAIN;

	/*
	 * The host signals room only to who has been refused, and decides on
	 * refusal before it notes it: room made in between goes unsignalled.
	 * The second attempt comes after the note.
	 */
	for (attempt = 0; attempt < 2; attempt++) {
		do {
			n = os_write_file(chan.fd, from, len);
		} while (n == -EINTR);
		if (n != -EAGAIN) {
			set_bit(CHAN_MAY_WRITE, &chan.flags);
			return n;
		}
	}
	return -EAGAIN;
}

/* Writes @len bytes of the bounce buffer; returns how many the host took. */
static ssize_t span_chan_push(struct file *file, size_t len)
{
	size_t done = 0;
	int n;

	while (done < len) {
		n = span_chan_offer(chan.out_buffer + done, len - done);
		if (n >= 0) {
			done += n;
			continue;
		}
		if (n != -EAGAIN || (file->f_flags & O_NONBLOCK))
			return done ? done : n;
		if (wait_event_interruptible(chan.wait,
					     test_bit(CHAN_MAY_WRITE, &chan.flags)))
			return done ? done : -ERESTARTSYS;
	}
	return done;
}

static ssize_t span_chan_write(struct file *file, const char __user *from,
			       size_t count, loff_t *pos)
{
	size_t done = 0, len;
	ssize_t n = 0;

	if (file->f_flags & O_NONBLOCK) {
		if (!mutex_trylock(&chan.out_lock))
			return -EAGAIN;
	} else if (mutex_lock_interruptible(&chan.out_lock)) {
		return -ERESTARTSYS;
	}

	while (done < count) {
		len = min_t(size_t, count - done, CHAN_BUFFER_BYTES);
		if (copy_from_user(chan.out_buffer, from + done, len)) {
			n = -EFAULT;
			break;
		}
		n = span_chan_push(file, len);
		if (n < 0)
			break;
		done += n;
		if (n < len)
			break;
	}
	if (done && !chan.told) {
		chan.told = true;
		rcu_unexpedite_gp();
	}

	mutex_unlock(&chan.out_lock);
	return done ? done : n;
}

static __poll_t span_chan_poll(struct file *file, poll_table *table)
{
	__poll_t mask = 0;

	poll_wait(file, &chan.wait, table);

	mutex_lock(&chan.in_lock);
	if (span_chan_fill())
		mask |= EPOLLIN | EPOLLRDNORM;
	if (test_bit(CHAN_ENDED, &chan.flags))
		mask |= EPOLLRDHUP;
	mutex_unlock(&chan.in_lock);

	if (test_bit(CHAN_MAY_WRITE, &chan.flags))
		mask |= EPOLLOUT | EPOLLWRNORM;
	return mask;
}

static int span_chan_open(struct inode *inode, struct file *file)
{
	if (test_and_set_bit(CHAN_OPEN, &chan.flags))
		return -EBUSY;
	return stream_open(inode, file);
}

static int span_chan_release(struct inode *inode, struct file *file)
{
	clear_bit(CHAN_OPEN, &chan.flags);
	return 0;
}

static const struct file_operations span_chan_fops = {
	.owner = THIS_MODULE,
	.open = span_chan_open,
	.release = span_chan_release,
	.read = span_chan_read,
	.write = span_chan_write,
	.poll = span_chan_poll,
};

static struct miscdevice span_chan_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "span",
	.mode = 0600,
	.fops = &span_chan_fops,
};

static int __init span_chan_init(void)
{
	int err, irq_in, irq_out;

	if (chan.fd < 0)
		return 0;

	/* A helper program must not keep the stream from ending. */
	err = os_set_exec_close(chan.fd);
	if (err < 0) {
		pr_err("span.chan=%d: no such descriptor (%d)\n", chan.fd, err);
		return err;
	}

	err = -ENOMEM;
	chan.in_buffer = kmalloc(CHAN_BUFFER_BYTES, GFP_KERNEL);
	chan.out_buffer = kmalloc(CHAN_BUFFER_BYTES, GFP_KERNEL);
	if (!chan.in_buffer || !chan.out_buffer)
		goto free_buffers;

	/* This also makes the descriptor non-blocking. */
	irq_in = um_request_irq(UM_IRQ_ALLOC, chan.fd, IRQ_READ,
				span_chan_readable, 0, "span-in", &chan);
	if (irq_in < 0) {
		err = irq_in;
		goto free_buffers;
	}
	irq_out = um_request_irq(UM_IRQ_ALLOC, chan.fd, IRQ_WRITE,
				 span_chan_writable, 0, "span-out", &chan);
	if (irq_out < 0) {
		err = irq_out;
		goto free_in;
	}

	err = misc_register(&span_chan_device);
	if (!err) {
		/*
		 * A boot is not over when the kernel starts its first process: that
		 * one mounts file systems, some of which wait for grace periods.
		 * Nothing else runs, so that to ask each CPU takes less than to
		 * wait until all were heard of. Until the first word, see above.
		 */
		rcu_expedite_gp();
		return 0;
	}

	um_free_irq(irq_out, &chan);
free_in:
	um_free_irq(irq_in, &chan);
free_buffers:
	kfree(chan.in_buffer);
	kfree(chan.out_buffer);
	pr_err("span.chan=%d: setting up the device failed (%d)\n", chan.fd, err);
	return err;
}
device_initcall(span_chan_init);
